"""Facts of image formats that decoders leave out: headers, clean apertures, transparent colours."""
