package config

import "strconv"

// Tolerations are how many seconds a pod that says nothing about it stays on a node in trouble.
type Tolerations struct {
	NotReady    int64 // its agent says that it is not ready
	Unreachable int64 // nothing is heard of it
}

// DefaultTolerations are a second each: a machine's death is noticed within two, and its pods serve elsewhere within five.
// Upstream's are 300.
func DefaultTolerations() Tolerations { return Tolerations{NotReady: 1, Unreachable: 1} }

// Names of the keys of Tolerations; they are kube-apiserver's flags.
const (
	KeyNotReadySeconds    = "default-not-ready-toleration-seconds"
	KeyUnreachableSeconds = "default-unreachable-toleration-seconds"
)

// longestToleration is a year in seconds.
const longestToleration = 365 * 24 * 60 * 60

func tolerationKeys() []Key {
	seconds := func(name, usage string, at func(*Tolerations) *int64) Key {
		return Key{Name: name, Default: "1", Usage: usage, set: func(c *Config, v []string) error {
			n, err := strconv.ParseInt(v[0], 10, 64)
			if err != nil || n < 0 || n > longestToleration {
				return wrong("want a whole number from 0 to "+strconv.Itoa(longestToleration), "%q is not such a number", v[0])
			}
			*at(&c.Tolerations) = n
			return nil
		}}
	}
	return []Key{
		seconds(KeyNotReadySeconds, "seconds that a pod which says nothing about it stays on a node that is not ready", func(t *Tolerations) *int64 { return &t.NotReady }),
		seconds(KeyUnreachableSeconds, "seconds that a pod which says nothing about it stays on a node that is not heard of", func(t *Tolerations) *int64 { return &t.Unreachable }),
	}
}
