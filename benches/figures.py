"""Medians, quartiles, and the comparison of two sides that were measured in turns."""

import statistics


def median(values):
    """The middle one."""
    return statistics.median(values)


def quartiles(values):
    """The 25th and the 75th percentile."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


class Pairs:
    """Measurements of two sides, taken in turns: side by side in every round, the first one alternating."""

    def __init__(self):
        self.ours, self.peer = [], []

    def round(self, number, ours, peer):
        """Measures both once."""
        if number % 2 == 0:
            self.ours.append(ours())
            self.peer.append(peer())
        else:
            self.peer.append(peer())
            self.ours.append(ours())

    def ratios(self):
        """Ours divided by the peer's, round by round."""
        return [ours / peer for ours, peer in zip(self.ours, self.peer)]

    def differences(self):
        """Ours minus the peer's, round by round."""
        return [ours - peer for ours, peer in zip(self.ours, self.peer)]
