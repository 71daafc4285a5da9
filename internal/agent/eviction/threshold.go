package eviction

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Signal is what is measured: how much of something is left.
type Signal string

// The signals. Container file systems are not among them: what a container writes lies where
// the images lie, so that imagefs says the same.
const (
	MemoryAvailable            Signal = "memory.available"
	AllocatableMemoryAvailable Signal = "allocatableMemory.available"
	NodeFSAvailable            Signal = "nodefs.available"
	NodeFSInodesFree           Signal = "nodefs.inodesFree"
	ImageFSAvailable           Signal = "imagefs.available"
	ImageFSInodesFree          Signal = "imagefs.inodesFree"
	PIDAvailable               Signal = "pid.available"
)

// ignored are signals that may be configured and say nothing of their own.
func ignored(s Signal) bool {
	return s == "containerfs.available" || s == "containerfs.inodesFree"
}

// Resources that have no name in the API.
const (
	ResourceInodes corev1.ResourceName = "inodes"
	ResourcePIDs   corev1.ResourceName = "pids"
)

// Resource is what a signal says is starved; "" for an unknown signal.
func (s Signal) Resource() corev1.ResourceName {
	switch s {
	case MemoryAvailable, AllocatableMemoryAvailable:
		return corev1.ResourceMemory
	case NodeFSAvailable, ImageFSAvailable:
		return corev1.ResourceEphemeralStorage
	case NodeFSInodesFree, ImageFSInodesFree:
		return ResourceInodes
	case PIDAvailable:
		return ResourcePIDs
	}
	return ""
}

// Condition is the node condition that a signal's threshold raises.
func (s Signal) Condition() corev1.NodeConditionType {
	switch s.Resource() {
	case corev1.ResourceMemory:
		return corev1.NodeMemoryPressure
	case ResourcePIDs:
		return corev1.NodePIDPressure
	default:
		return corev1.NodeDiskPressure
	}
}

func (s Signal) format() resource.Format {
	switch s.Resource() {
	case ResourceInodes, ResourcePIDs:
		return resource.DecimalSI
	default:
		return resource.BinarySI
	}
}

// Value is an amount, or a share of the capacity when Amount is 0.
type Value struct {
	Amount int64
	Share  float32 // 0 to 1
	Format resource.Format
}

// Of is the value of a capacity.
func (v Value) Of(capacity int64) int64 {
	if v.Amount != 0 {
		return v.Amount
	}
	return int64(float64(capacity) * float64(v.Share))
}

// quantity is the value as messages show it.
func (v Value) quantity(capacity int64) *resource.Quantity {
	format := v.Format
	if v.Amount == 0 || format == "" {
		format = resource.BinarySI
	}
	return resource.NewQuantity(v.Of(capacity), format)
}

// Threshold is met when less than Value of the signal is left. It is comparable.
type Threshold struct {
	Signal     Signal
	Value      Value
	Grace      time.Duration // how long it must be met; 0 is a hard threshold
	MinReclaim Value         // how much more than Value must be free until it is resolved
}

// Hard reports whether pods get no grace period of their own.
func (t Threshold) Hard() bool { return t.Grace == 0 }

// DefaultHard are the hard thresholds of a node that sets none.
func DefaultHard() map[string]string {
	return map[string]string{
		string(MemoryAvailable):   "100Mi",
		string(NodeFSAvailable):   "10%",
		string(NodeFSInodesFree):  "5%",
		string(ImageFSAvailable):  "15%",
		string(ImageFSInodesFree): "5%",
	}
}

// Parse reads thresholds as the kubelet's configuration has them: a signal and an amount
// ("100Mi") or a share ("10%"). A soft threshold needs a grace period. The memory that pods may
// have together gets the hard threshold of the node's memory. 0 % and 100 % switch a threshold
// off.
func Parse(hard, soft, softGrace, minReclaim map[string]string) ([]Threshold, error) {
	list, err := parseAll(hard)
	if err != nil {
		return nil, err
	}
	softer, err := parseAll(soft)
	if err != nil {
		return nil, err
	}
	graces := map[Signal]time.Duration{}
	for _, name := range slices.Sorted(maps.Keys(softGrace)) {
		if err := known(Signal(name)); err != nil {
			return nil, err
		}
		grace, err := time.ParseDuration(softGrace[name])
		if err != nil || grace < 0 {
			return nil, fmt.Errorf("grace period %q of %s is not a duration such as 90s", softGrace[name], name)
		}
		graces[Signal(name)] = grace
	}
	for _, t := range softer {
		grace, ok := graces[t.Signal]
		if !ok {
			return nil, fmt.Errorf("the soft threshold of %s has no grace period", t.Signal)
		}
		t.Grace = grace
		list = append(list, t)
	}
	for _, name := range slices.Sorted(maps.Keys(minReclaim)) {
		value, err := parseValue(Signal(name), minReclaim[name])
		if err != nil {
			return nil, err
		}
		for i := range list {
			if list[i].Signal == Signal(name) {
				list[i].MinReclaim = value
			}
		}
	}
	for _, t := range list {
		if t.Signal == MemoryAvailable && t.Hard() {
			t.Signal = AllocatableMemoryAvailable
			list = append(list, t)
			break
		}
	}
	return list, nil
}

func parseAll(statements map[string]string) ([]Threshold, error) {
	var list []Threshold
	for _, name := range slices.Sorted(maps.Keys(statements)) {
		text := statements[name]
		value, err := parseValue(Signal(name), text)
		if err != nil {
			return nil, err
		}
		if text == "0%" || text == "100%" || ignored(Signal(name)) {
			continue
		}
		if value.Amount == 0 && value.Share == 0 {
			return nil, fmt.Errorf("the threshold of %s must be more than 0", name)
		}
		list = append(list, Threshold{Signal: Signal(name), Value: value})
	}
	return list, nil
}

func known(s Signal) error {
	if s.Resource() == "" && !ignored(s) {
		return fmt.Errorf("there is no eviction signal %q", string(s))
	}
	return nil
}

func parseValue(s Signal, text string) (Value, error) {
	if err := known(s); err != nil {
		return Value{}, err
	}
	if share, ok := strings.CutSuffix(text, "%"); ok {
		percent, err := strconv.ParseFloat(share, 32)
		if err != nil || math.IsNaN(percent) || percent < 0 || percent > 100 {
			return Value{}, fmt.Errorf("%q of %s is not a share from 0%% to 100%%", text, s)
		}
		return Value{Share: float32(percent) / 100}, nil
	}
	q, err := resource.ParseQuantity(text)
	if err != nil || q.Sign() < 0 {
		return Value{}, fmt.Errorf("%q of %s is neither an amount such as 100Mi nor a share such as 10%%", text, s)
	}
	return Value{Amount: q.Value(), Format: q.Format}, nil
}

// Reserved is what the hard thresholds keep from pods: the node's allocatable is its capacity
// without it.
func Reserved(thresholds []Threshold, capacity corev1.ResourceList) corev1.ResourceList {
	reserved := corev1.ResourceList{}
	for _, t := range thresholds {
		if !t.Hard() {
			continue
		}
		name := corev1.ResourceName("")
		switch t.Signal {
		case MemoryAvailable:
			name = corev1.ResourceMemory
		case NodeFSAvailable:
			name = corev1.ResourceEphemeralStorage
		default:
			continue
		}
		if q, ok := capacity[name]; ok {
			reserved[name] = *t.Value.quantity(q.Value())
		}
	}
	return reserved
}
