"""What strangers bring: graphs, sounds and pictures as public reports describe them, each served or refused with the
true reason.
"""
