"""Features of images, and answers that are rejected as improbable or unlike the training images."""
