"""hat data: a look at datasets before they are trained on."""
