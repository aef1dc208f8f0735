"""From logits to labels and probabilities in files on the image's own grid."""
