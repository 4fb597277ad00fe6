"""Trials that a sound model, loss and data set pass: chance, independence, labels, a small set."""
