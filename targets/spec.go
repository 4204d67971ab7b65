package targets

import (
	"context"
	"path/filepath"
	"slices"
	"strings"

	atelier "github.com/atelier-edge/atelier"
)

// Container is what a kind that runs container images needs besides. Its files lie in the
// agent's content store, verified when they came.
type Container struct {
	Image    Image                     `json:"image"`
	Settings atelier.ContainerSettings `json:"settings"`
	// OwnCommand lets the image, and Settings, say what is run, where, and as whom. Otherwise
	// Spec.Command is run in Spec.Dir.
	OwnCommand bool `json:"own_command,omitempty"`
	// Mounts are shown to the container besides those of Settings.
	Mounts []atelier.ContainerMount `json:"mounts,omitempty"`
}

// Image is a container image on the device.
type Image struct {
	Reference string `json:"reference"` // for people
	Manifest  Blob   `json:"manifest"`
	Config    Blob   `json:"config"`
	Layers    []Blob `json:"layers"` // the lowest first
}

// Blob is content in a file.
type Blob struct {
	Path   string         `json:"path"`
	Digest atelier.Digest `json:"digest"`
	Size   int64          `json:"size"`
}

// Prober is what a target implements that can run a command within an instance.
type Prober interface {
	// Probe runs the command and returns nil where it ends with 0.
	Probe(ctx context.Context, id string, command []string) error
}

// CheckID returns an Invalid error for an id that cannot name a directory.
func CheckID(id string) error {
	bad := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
	}
	if id == "" || len(id) > 200 || id[0] == '.' || strings.ContainsFunc(id, bad) {
		return atelier.Errorf(atelier.Invalid, "module id %.80q is not 1 to 200 characters of a-z, 0-9, '-', '_' and '.' that do not begin with '.'", id).
			WithField("id")
	}
	return nil
}

// maxSocketPath is the longest path of a Unix socket, see unix(7).
const maxSocketPath = 107

// Check returns an Invalid error for a specification that no target can run.
func (s *Spec) Check() error {
	if err := CheckID(s.ID); err != nil {
		return err
	}
	bad := func(field, format string, args ...any) *atelier.Error {
		return atelier.Errorf(atelier.Invalid, format, args...).WithField(field)
	}
	switch {
	case len(s.Command) == 0 && (s.Container == nil || !s.Container.OwnCommand):
		return bad("command", "module %s has no command", s.ID)
	case len(s.Command) > 0 && !filepath.IsAbs(s.Command[0]):
		return bad("command", "the command of module %s does not begin with an absolute path", s.ID)
	case !filepath.IsAbs(s.Dir):
		return bad("dir", "the directory %q of module %s is not an absolute path", s.Dir, s.ID)
	case !filepath.IsAbs(s.Log):
		return bad("log", "the log %q of module %s is not an absolute path", s.Log, s.ID)
	case s.Socket != "" && !filepath.IsAbs(s.Socket):
		return bad("socket", "the socket %q of module %s is not an absolute path", s.Socket, s.ID)
	case len(s.Socket) > maxSocketPath:
		return bad("socket", "the socket %q of module %s is longer than %d bytes", s.Socket, s.ID, maxSocketPath).
			WithRemedy("Run the agent with a shorter --run directory.")
	case slices.ContainsFunc(s.Env, func(e string) bool { return strings.IndexByte(e, '=') < 1 || strings.ContainsRune(e, 0) }):
		return bad("env", "an environment variable of module %s is not NAME=value", s.ID)
	case s.Limits.Memory < 0 || s.Limits.CPUs < 0:
		return bad("limits", "a limit of module %s is negative", s.ID)
	}
	return nil
}
