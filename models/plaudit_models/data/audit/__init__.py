"""Audit of a data set: what is unreadable, double, leaked, given away or labelled wrongly."""
