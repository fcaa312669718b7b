"""Means under a distribution: draws that integrate well, and the tests of their tails."""
