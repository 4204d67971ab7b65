// Package targets defines what it takes to run modules on a kind of target: a
// plain process, a container, an FPGA host, a Kubernetes cluster.
//
// A target kind is one directory below this one that implements Target and
// passes targets/targettest. The agent names the kinds that it knows in one
// explicit list in its command.
package targets

import (
	"context"
	"io"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// Spec is everything that a target needs to run one rollout of a module. All
// paths are absolute and exist when Start is called, except Socket and Log.
type Spec struct {
	// ID identifies the instance on this device and names its directory:
	// "{deployment}-{rollout}" for services.
	ID string `json:"id"`
	// Command is the program and its arguments.
	Command []string `json:"command"`
	// Env are further environment variables, "NAME=value". The device's own
	// environment is not passed on.
	Env []string `json:"env,omitempty"`
	// Dir is the private working directory.
	Dir string `json:"dir"`
	// Socket is the path of the Unix socket on which the module will listen.
	Socket string `json:"socket"`
	// Log is the file that takes standard output and error.
	Log string `json:"log"`
	// LogLimit is the size in bytes at which Log begins anew, keeping one older file.
	LogLimit int64          `json:"log_limit"`
	Limits   atelier.Limits `json:"limits"`
	// Container is set for instances that run a container image.
	Container *Container `json:"container,omitempty"`
}

// Phase says whether an instance runs.
type Phase string

// The phases.
const (
	Running Phase = "running"
	Exited  Phase = "exited"
)

// Status is what a target knows of one instance.
type Status struct {
	ID      string    `json:"id"`
	Phase   Phase     `json:"phase"`
	PID     int       `json:"pid,omitempty"`
	Started time.Time `json:"started"`
	// Exit is set when Phase is Exited.
	Exit *Exit `json:"exit,omitempty"`
}

// Exit says how an instance ended.
type Exit struct {
	Time        time.Time `json:"time"`
	Code        int       `json:"code"`             // the exit code, -1 when ended by a signal
	Signal      string    `json:"signal,omitempty"` // such as "killed"
	OutOfMemory bool      `json:"out_of_memory,omitempty"`
	// LastLine is the last line that the instance wrote, at most 4 KiB.
	LastLine string `json:"last_line,omitempty"`
}

// Target runs instances. Instances outlive the agent: a Target made anew in the
// same directory finds them again. All methods are safe for concurrent use,
// and idempotent: doing again what is done already succeeds and changes nothing.
// Errors are *atelier.Error; NotFound for an instance that is not known.
type Target interface {
	// Kind is the kind's name, "process" for example.
	Kind() string
	// Start starts the instance and returns when its process runs; it does not
	// wait until the module is ready. An instance that runs already stays; one
	// that has exited is started again.
	Start(ctx context.Context, spec Spec) error
	// Stop asks the instance to end, makes it end after grace, and returns when
	// it has ended.
	Stop(ctx context.Context, id string, grace time.Duration) error
	// Remove forgets an instance that has ended and deletes what Start made.
	Remove(ctx context.Context, id string) error
	// Status returns the instance's status.
	Status(ctx context.Context, id string) (Status, error)
	// List returns the status of every instance, those started by an earlier
	// agent too.
	List(ctx context.Context) ([]Status, error)
	// Wait returns when the instance is not running, or ctx ends.
	Wait(ctx context.Context, id string) (Status, error)
	// Log returns the end of the instance's log, at most max bytes.
	Log(ctx context.Context, id string, max int64) (io.ReadCloser, error)
}
