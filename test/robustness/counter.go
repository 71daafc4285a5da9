package robustness

import "fmt"

// CheckCounter holds a counter's end against what its clients were told: each acknowledged step counts once, each of
// unknown outcome at most once.
func CheckCounter(acknowledged, unknown, got int) error {
	if got < acknowledged {
		return fmt.Errorf("lost: the counter is %d after %d acknowledged steps", got, acknowledged)
	}
	if got > acknowledged+unknown {
		return fmt.Errorf("phantom: the counter is %d after %d acknowledged steps and %d of unknown outcome", got, acknowledged, unknown)
	}
	return nil
}
