"""The probe: a linear head fitted to what a frozen backbone says of the images."""
