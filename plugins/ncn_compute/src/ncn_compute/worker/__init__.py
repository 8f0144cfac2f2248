"""What runs inside the jail: a program that loads one model and answers requests over an inherited socket."""
