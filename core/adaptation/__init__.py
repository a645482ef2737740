"""Teaching a model one repository, and measuring whether that helped."""
