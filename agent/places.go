package agent

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/config"
)

// Places say where things lie on the device; docs/agent.md describes them.
type Places struct {
	State    string // what must last
	Run      string // sockets
	Programs string // atelier-gateway, atelier-serve, atelier-shim, drivers
	// Containers say how containers are run.
	Containers config.Containers
	// Reserve is how many bytes of the disk stay free.
	Reserve int64
}

// NewPlaces returns the places that a configuration names.
func NewPlaces(c config.Config) (Places, error) {
	p := c.Paths
	places := Places{State: p.State, Run: p.Run, Programs: p.Programs, Containers: c.Containers, Reserve: c.Disk.ReserveBytes}
	if places.Programs == "" {
		self, err := os.Executable()
		if err != nil {
			return Places{}, atelier.Errorf(atelier.Internal, "find the agent's own executable: %w", err).
				WithRemedy("Set paths.programs in the configuration.")
		}
		if self, err = filepath.EvalSymlinks(self); err != nil {
			return Places{}, atelier.Errorf(atelier.Internal, "find the agent's own executable: %w", err).
				WithRemedy("Set paths.programs in the configuration.")
		}
		places.Programs = filepath.Dir(self)
	}
	return places, nil
}

func (p Places) saved() string        { return filepath.Join(p.State, "state") }
func (p Places) content() string      { return filepath.Join(p.State, "content") }
func (p Places) modules() string      { return filepath.Join(p.State, "modules") }
func (p Places) environments() string { return filepath.Join(p.State, "environments") }
func (p Places) gateway() string      { return filepath.Join(p.State, "gateway") }
func (p Places) router() string       { return filepath.Join(p.State, "router") }
func (p Places) passwords() string    { return filepath.Join(p.State, "passwords") }
func (p Places) spool() string        { return filepath.Join(p.State, "spool") }
func (p Places) collected() string    { return filepath.Join(p.State, "collected") }
func (p Places) data() string         { return filepath.Join(p.State, "data") }
func (p Places) log() string          { return filepath.Join(p.State, "agent.log") }
func (p Places) bundles() string      { return filepath.Join(p.State, "bundles") }
func (p Places) socket() string       { return filepath.Join(p.Run, "agent.sock") }

// importSocket is where a running agent is asked to import a bundle.
func (p Places) importSocket() string { return filepath.Join(p.Run, "import.sock") }

// Instances is where a target of the kind keeps what it knows of its instances.
func (p Places) Instances(kind string) string { return filepath.Join(p.State, "instances", kind) }

// Driver is the path of the driver for a kind of target.
func (p Places) Driver(kind string) string { return filepath.Join(p.Programs, "atelier-driver-"+kind) }

// DriverSocket is where the driver for a kind of target answers.
func (p Places) DriverSocket(kind string) string { return filepath.Join(p.Run, kind+".sock") }

// DriverLog takes what the driver for a kind of target writes.
func (p Places) DriverLog(kind string) string { return filepath.Join(p.State, "driver-"+kind+".log") }

// Shim is the path of atelier-shim.
func (p Places) Shim() string { return filepath.Join(p.Programs, "atelier-shim") }

// lockFile holds the lock of the one agent that uses a state directory.
const lockFile = "agent.lock"

// lock takes the state directory for this process; InUse where another has it.
// The lock goes with the process, whatever ends it.
func lock(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, atelier.Errorf(atelier.Internal, "lock the state directory: %w", err).
			WithRemedy("Let the agent's user write to %s; 'findmnt -T %s' shows whether its disk is mounted read-only.", dir, dir)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		err = errors.Join(err, f.Close())
		return nil, atelier.Errorf(atelier.InUse, "another agent uses %s: %w", dir, err).
			WithRemedy("Stop the other agent, or give this one a state directory of its own.")
	}
	return func() { _ = f.Close() }, nil // closing unlocks; the file stays
}
