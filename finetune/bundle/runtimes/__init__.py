"""Models in the files of other libraries, run by those libraries as networks of finetune."""
