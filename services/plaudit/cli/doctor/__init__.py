"""``plaudit doctor``: what a deployment needs, examined; each finding names the way out."""
