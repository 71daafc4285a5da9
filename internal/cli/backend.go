package cli

import (
	"context"
	"io"
	"log/slog"

	"k8s.io/client-go/rest"

	"gantry.dev/gantry/internal/config"
	"gantry.dev/gantry/internal/join"
	"gantry.dev/gantry/internal/lifecycle"
)

// Backend is what commands do to this machine. A program built for clients only has an empty one, and
// then the commands that need a member do not exist.
type Backend struct {
	// Versions lists the programs and libraries inside the binary, for "gantry version".
	Versions func() []Version
	// Up runs a node until ctx ends. The caller holds the data dir's lock.
	Up func(ctx context.Context, run UpRequest) error
	// Down stops what still runs after the main process has ended: edge, pods, mounts, interfaces and
	// nftables tables. It finds nothing to do when called again. The caller holds the lock and, for
	// "--purge", removes the data dir afterwards.
	Down func(ctx context.Context, run DownRequest) error
	// Doctor examines this machine for what would keep a cluster on it from working.
	Doctor func(ctx context.Context, c config.Config) ([]Finding, error)
	// Images works on the node's images.
	Images *Images
	// Registry works on the cluster's image registry.
	Registry *Registry
	// ProbeImage puts the image of "gantry network check" into a cluster's registry, for a project, and returns its name.
	ProbeImage func(ctx context.Context, cluster *rest.Config, project string) (string, error)
	// Backups works on backups without a cluster.
	Backups *Backups
	// Plan says what documents would do to a cluster, WhyPod why a pod is where it is.
	Plan   func(ctx context.Context, run PlanRequest) (Answer, error)
	WhyPod func(ctx context.Context, cluster *rest.Config, project, name string) (Answer, error)
}

// Version is one part of the program.
type Version struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// UpRequest is everything a node needs to run.
type UpRequest struct {
	Config   config.Config
	Identity lifecycle.Identity // its Name is the node's, whatever Config.NodeName says
	Version  string             // of Gantry
	Steps    *lifecycle.Steps
	Logger   *slog.Logger
	Ready    func()       // to be called once, when the node is Ready
	Join     *JoinRequest // the cluster to join first; nil: the one that the data dir is in, or its own
	Change   *Changing    // how the process becomes another program; nil: it does not
	Trial    bool         // the program is new here: it is Ready when a server has said so, not before
}

// Changing lets a process become another program, which is on trial then.
type Changing struct {
	Args    []string // of the command that runs, for that program too
	Restart func()   // stops Up; the process becomes the program afterwards
}

// JoinRequest says which cluster a machine is to become a part of.
type JoinRequest struct {
	Address string // of a server, with its port
	Token   join.Token
	Server  bool // become a server, not a worker
}

// DownRequest says what to stop.
type DownRequest struct {
	Config config.Config
	Steps  *lifecycle.Steps
	Logger *slog.Logger
}

// Levels of findings.
const (
	LevelOK      = "ok"
	LevelWarning = "warning" // works, but not as it should
	LevelProblem = "problem" // a node does not work like this
)

// Finding is one thing that "gantry doctor" looked at.
type Finding struct {
	Check string                          `json:"check"`
	Level string                          `json:"level"`
	Says  string                          `json:"says"`
	Cure  string                          `json:"cure,omitempty"` // what helps, as a command where there is one
	Fix   func(ctx context.Context) error `json:"-"`              // does it; nil when only a person can
}

// Images works on images; all members are required.
type Images struct {
	// Load imports a docker or OCI archive into the node of the data dir and returns the names it held.
	Load   func(ctx context.Context, c config.Config, archive io.Reader) ([]string, error)
	List   func(ctx context.Context, c config.Config) ([]Image, error)
	Remove func(ctx context.Context, c config.Config, name string) error
	// Build compiles a Go main package and writes it as an archive that Load reads. It needs no node.
	Build func(ctx context.Context, run BuildRequest) error
}

// Image is one image of the node or of the registry.
type Image struct {
	Name      string `json:"name"`
	Digest    string `json:"digest"`
	SizeBytes int64  `json:"sizeBytes"`
	Where     string `json:"where"` // "node" or "registry"
}

// BuildRequest says what to build.
type BuildRequest struct {
	Path     string    // folder of the main package
	Name     string    // of the image, with a tag
	Out      io.Writer // gets the archive
	Progress io.Writer // gets what the compiler says
}
