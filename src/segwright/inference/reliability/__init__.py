"""How reliable a prediction is: uncertainty, expected Dice, calibration, out-of-distribution flags."""
