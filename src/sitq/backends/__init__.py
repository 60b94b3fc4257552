"""Where tasks are stored. Import the classes from ``sitq``."""
