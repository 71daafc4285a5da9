package container

import (
	"errors"
	"io"
	"time"
)

// Sandbox is what the containers of one pod share: namespaces, a parent cgroup, a log
// directory and one shim process. There is no pause container; the namespaces are held by
// bind mounts.
type Sandbox struct {
	ID        string // the pod's UID; unique on the node
	Namespace string
	Name      string // the pod's name
	Hostname  string // written into the UTS namespace; empty when HostNetwork
	Domain    string // NIS-free domain of the pod's FQDN, may be empty

	NetNSPath   string // bind-mounted network namespace; "" is the node's own
	HostPID     bool
	HostIPC     bool
	ShareProcs  bool // one PID namespace for all containers (spec.shareProcessNamespace)
	Sysctls     map[string]string
	CgroupPath  string    // parent of the containers' cgroups, such as "/kubepods/burstable/pod1234"
	Resources   Resources // limits of the parent cgroup; zero values set nothing
	LogDir      string    // absolute; holds NAME/ATTEMPT.log for each container
	Runtime     string    // RuntimeClass handler: "" is gantry-shim, "runc" the stock shim
	Labels      map[string]string
	Annotations map[string]string
}

// Resources are cgroup settings in the runtime's units. A zero field sets nothing.
type Resources struct {
	CPUShares        uint64 // cgroup v1 shares, 2 to 262144; converted to a weight on v2
	CPUQuotaMicros   int64  // CPU time per period; negative is no limit
	CPUPeriodMicros  uint64 // default 100000
	MemoryLimitBytes int64
	PidsLimit        int64
	OOMScoreAdj      *int // -1000 to 1000; raised to the agent's own where the kernel refuses to lower it
	CPUSetCPUs       string
	CPUSetMems       string
	HugepageLimits   map[string]uint64 // "2MB" to bytes
	Unified          map[string]string // raw cgroup v2 files
}

// Mount is one bind mount into a container.
type Mount struct {
	HostPath      string
	ContainerPath string
	ReadOnly      bool
	Recursive     bool   // with ReadOnly: submounts are read-only too
	Propagation   string // "private" (default), "rslave", "rshared"
}

// Device is one device node a container may use.
type Device struct {
	HostPath      string
	ContainerPath string
	Permissions   string // of "rwm"
}

// Hook is a program that runs on the node at a stage of a container's life, as the OCI runtime
// specification has it.
type Hook struct {
	Stage          string // "createRuntime", "createContainer", "startContainer", "poststart", "poststop" or "prestart"
	Path           string
	Args           []string
	Env            []string
	TimeoutSeconds *int
}

// Security restricts a container. The zero value is an unprivileged container with the
// default capabilities and masked paths.
type Security struct {
	User               *int64 // numeric user; nil takes UserName, then the image's
	UserName           string
	Group              *int64
	SupplementalGroups []int64
	MergeImageGroups   bool // add the groups that the image's /etc/group gives the user (supplementalGroupsPolicy Merge)
	Privileged         bool
	AddCapabilities    []string // without CAP_; "ALL" for all
	DropCapabilities   []string
	ReadOnlyRootfs     bool
	NoNewPrivileges    bool
	Seccomp            string // "unconfined" (default), "runtime" (the built-in profile) or an absolute file path
	AppArmor           string // profile name, "" for none
	UnmaskedProc       bool   // procMount Unmasked
}

// Config describes one container of a sandbox.
type Config struct {
	SandboxID  string
	Name       string // the container's name in the pod
	Attempt    int    // restart count, 0 for the first
	Image      string // Image.ID from Pull or Image
	ImageRef   string // as the pod's spec wrote it; kept for the status
	Command    []string
	Args       []string
	WorkingDir string
	Env        []string // KEY=value, in order; later wins
	Mounts     []Mount
	Devices    []Device
	Hooks      []Hook
	Resources  Resources
	Security   Security
	TTY        bool
	Stdin      bool
	StdinOnce  bool
	LogPath    string // absolute; CRI format, written and rotated by the shim
	StopSignal string // such as "SIGUSR1"; "" takes the image's, then SIGTERM
	LogMaxSize int64  // bytes before rotation; 0 is 10 MiB
	LogMaxFile int    // files kept, at least 2; 0 is 5
	Labels     map[string]string
	// Annotations are stored with the container and come back in Status.
	Annotations map[string]string
}

// State is where a container is in its life.
type State string

// The states of a container, in order.
const (
	StateCreated State = "created"
	StateRunning State = "running"
	StateExited  State = "exited"
	StateUnknown State = "unknown" // the shim is gone and nothing says how the container ended
)

// ReasonFenced is why a container ended whose pod was killed because its node was cut off.
const ReasonFenced = "Fenced"

// ErrNoFence is the error of a sandbox that cannot hold a deadline.
var ErrNoFence = errors.New("the sandbox cannot be fenced")

// Status is what a runtime knows of one container.
type Status struct {
	ID          string // unique on the node, without a scheme
	SandboxID   string
	Name        string
	Attempt     int
	State       State
	CreatedAt   time.Time
	StartedAt   time.Time // zero until started
	FinishedAt  time.Time // zero until exited
	ExitCode    int       // 128+n when a signal n ended it
	OOMKilled   bool
	Reason      string // "Completed", "Error", "OOMKilled", "Fenced", "ContainerStatusUnknown"
	Message     string
	PID         int   // on the node; 0 unless running
	User        *User // nil when it is not known
	Image       string
	ImageRef    string
	ImageID     string // repository digest where there is one, else the ID
	LogPath     string
	Labels      map[string]string
	Annotations map[string]string
}

// User is whom the first process of a container starts as.
type User struct {
	UID, GID int64
	Groups   []int64
}

// SandboxStatus is one sandbox and its containers, oldest first.
type SandboxStatus struct {
	Sandbox    Sandbox
	CreatedAt  time.Time
	Containers []Status
}

// Event says that something happened to a container; read its Status for the rest.
type Event struct {
	SandboxID   string
	ContainerID string
	Type        EventType
}

// EventType is the kind of an Event.
type EventType string

// The events that a runtime reports.
const (
	EventStarted EventType = "started"
	EventExited  EventType = "exited"
	EventOOM     EventType = "oom"
)

// Size is a terminal's size in characters.
type Size struct{ Width, Height uint16 }

// Streams are the ends of an exec or attach session. Nil streams are not connected.
type Streams struct {
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer   // nil with a terminal: everything is on Stdout
	Resize <-chan Size // nil without a terminal
	TTY    bool
}

// Image is one image in the runtime's store.
type Image struct {
	ID        string // digest of the image's config, "sha256:…"
	Names     []string
	Digests   []string // "repository@sha256:…"
	SizeBytes int64
	User      string // the image's USER
	Pinned    bool   // never collected
	LastUsed  time.Time
}

// Credentials authorize a pull from one registry.
type Credentials struct {
	Username string
	Password string
	Token    string // identity or registry token; wins over the password
}
