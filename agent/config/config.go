// Package config reads the agent's one configuration file, TOML, and follows
// its changes.
//
// It is strict: a key that it does not know is an error that names the key, so
// that a misspelt setting never passes for a working one. A file that has become
// wrong while the agent runs changes nothing; the agent keeps what it has and
// says so. The package knows nothing of what the settings do.
package config

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	atelier "github.com/atelier-edge/atelier"
)

// DefaultPath is where the agent looks for its configuration. There the file
// may be missing; one that is named with --config must exist.
const DefaultPath = "/etc/atelier/agent.toml"

// maxFile bounds a configuration file in bytes.
const maxFile = 1 << 20

// Example is a configuration file that shows every key with its default.
//
//go:embed example.toml
var Example string

// Config is the agent's configuration. Log, Telemetry, Gateway and Disk take effect
// while the agent runs; Bundles, Paths, SpoolBytes and BallastBytes when it starts.
type Config struct {
	Log       Log       `toml:"log"`
	Telemetry Telemetry `toml:"telemetry"`
	Gateway   Gateway   `toml:"gateway"`
	Modules   Modules   `toml:"modules"`
	Disk      Disk      `toml:"disk"`
	Bundles   Bundles   `toml:"bundles"`
	// Containers take effect when the agent starts.
	Containers Containers `toml:"containers"`
	Paths      Paths      `toml:"paths"`
}

// Log says what the agent writes to its log.
type Log struct {
	Level string `toml:"level"` // debug, info, warn or error
}

// Telemetry says how often the agent measures and how much it keeps while the
// hub is away.
type Telemetry struct {
	Interval   Duration `toml:"interval"`
	SpoolBytes int64    `toml:"spool_bytes"`
}

// Gateway says where the device's endpoints answer.
type Gateway struct {
	Listen string `toml:"listen"` // HOST:PORT
}

// Modules says where modules talk to each other, and how much may wait on disk.
type Modules struct {
	Listen     string `toml:"listen"`      // HOST:PORT for MQTT
	QueueBytes int64  `toml:"queue_bytes"` // of messages on one way, from a module to where it leads
}

// Disk bounds what the agent uses of the device's disk.
type Disk struct {
	// ReserveBytes stay free: content that would leave less is not fetched.
	ReserveBytes int64 `toml:"reserve_bytes"`
	// BallastBytes is the size of the file that is given up when the disk is
	// full, so that state can still be saved. 0 is none.
	BallastBytes int64 `toml:"ballast_bytes"`
	// KeepUnused is how long content stays that no module needs any more.
	KeepUnused Duration `toml:"keep_unused"`
	// KeepPrevious lets the version stay that each module ran before, so that
	// going back to it needs no transfer.
	KeepPrevious bool `toml:"keep_previous"`
}

// Bundles say where deployments arrive that come without a network; see
// docs/airgap.md.
type Bundles struct {
	// Directory is watched; empty means bundles below Paths.State.
	Directory string `toml:"directory"`
	// KeepImported keeps what was imported in the directory's own directory done;
	// otherwise it is removed.
	KeepImported bool `toml:"keep_imported"`
}

// Containers say how container images are run; see docs/containers.md.
type Containers struct {
	// Address is containerd's socket.
	Address string `toml:"address"`
	// Namespace is containerd's, of this device's alone.
	Namespace string `toml:"namespace"`
	// Snapshotter is containerd's; "" takes overlayfs where it works, and native otherwise.
	Snapshotter string `toml:"snapshotter"`
}

// Paths say where things lie; see docs/agent.md.
type Paths struct {
	State string `toml:"state"`
	Run   string `toml:"run"`
	// Programs is the directory of atelier-gateway, atelier-serve and
	// atelier-shim; empty means beside the agent's own executable.
	Programs string `toml:"programs"`
}

// Duration is a time.Duration written as "15s" or "5m".
type Duration time.Duration

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// MarshalText writes d as time.Duration does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Default returns the configuration that holds where no file says otherwise.
func Default() Config {
	return Config{
		Log:        Log{Level: "info"},
		Telemetry:  Telemetry{Interval: Duration(15 * time.Second), SpoolBytes: 64 << 20},
		Gateway:    Gateway{Listen: "127.0.0.1:8600"},
		Modules:    Modules{Listen: "127.0.0.1:8601", QueueBytes: 16 << 20},
		Disk:       Disk{ReserveBytes: 64 << 20, BallastBytes: 4 << 20, KeepUnused: Duration(30 * time.Minute), KeepPrevious: true},
		Bundles:    Bundles{KeepImported: true},
		Containers: Containers{Address: "/run/containerd/containerd.sock", Namespace: "atelier"},
		Paths:      Paths{State: "/var/lib/atelier", Run: "/run/atelier"},
	}
}

// Parse reads a configuration file's text over the defaults. Its errors are
// *atelier.Error with code Invalid; Field names the key.
func Parse(text []byte) (Config, error) {
	c := Default()
	d := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return Config{}, explain(err)
	}
	return c, c.check()
}

// namespace is what containerd takes for a namespace's name.
var namespace = regexp.MustCompile("^[A-Za-z0-9]+([._-][A-Za-z0-9]+)*$")

// explain turns the decoder's error into one that names line and key.
func explain(err error) error {
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) && len(unknown.Errors) > 0 {
		first := unknown.Errors[0]
		line, _ := first.Position()
		key := strings.Join(first.Key(), ".")
		return atelier.Errorf(atelier.Invalid, "line %d: there is no setting %q", line, key).
			WithField(key).WithRemedy("Remove the line, or correct its name; docs/agent.md lists the settings.")
	}
	var bad *toml.DecodeError
	if errors.As(err, &bad) {
		line, column := bad.Position()
		return atelier.Errorf(atelier.Invalid, "line %d, column %d: %s", line, column, strings.TrimPrefix(bad.Error(), "toml: ")).
			WithField(strings.Join(bad.Key(), ".")).WithRemedy("Correct the line.")
	}
	return atelier.Errorf(atelier.Invalid, "%w", err).WithRemedy("Correct the file.")
}

// check checks the values.
func (c *Config) check() error {
	wrong := func(field, format string, args ...any) error {
		return atelier.Errorf(atelier.Invalid, "%s %s", field, fmt.Sprintf(format, args...)).WithField(field)
	}
	if _, err := c.Log.slog(); err != nil {
		return wrong("log.level", "is %q, expected debug, info, warn or error", c.Log.Level)
	}
	if i := time.Duration(c.Telemetry.Interval); i < time.Second || i > time.Hour {
		return wrong("telemetry.interval", "is %v, expected 1s to 1h", i)
	}
	if n := c.Telemetry.SpoolBytes; n < 1<<20 {
		return wrong("telemetry.spool_bytes", "is %d, expected at least 1048576", n)
	}
	if _, _, err := net.SplitHostPort(c.Gateway.Listen); err != nil {
		return wrong("gateway.listen", "is %q, expected HOST:PORT such as 127.0.0.1:8600", c.Gateway.Listen)
	}
	if host, port, err := net.SplitHostPort(c.Modules.Listen); err != nil || host == "" || port == "" || port == "0" {
		return wrong("modules.listen", "is %q, expected HOST:PORT such as 127.0.0.1:8601", c.Modules.Listen)
	}
	if n := c.Modules.QueueBytes; n < 1<<20 {
		return wrong("modules.queue_bytes", "is %d, expected at least 1048576", n)
	}
	if c.Disk.ReserveBytes < 0 || c.Disk.BallastBytes < 0 {
		return wrong("disk", "holds a negative size")
	}
	if k := time.Duration(c.Disk.KeepUnused); k < 0 {
		return wrong("disk.keep_unused", "is %v, expected 0s or more", k)
	}
	for field, p := range map[string]string{"paths.state": c.Paths.State, "paths.run": c.Paths.Run, "containers.address": c.Containers.Address} {
		if !filepath.IsAbs(p) {
			return wrong(field, "is %q, expected an absolute path", p)
		}
	}
	if n := c.Containers.Namespace; !namespace.MatchString(n) || len(n) > 76 {
		return wrong("containers.namespace", "is %q, expected letters, digits, '-', '_' and '.'", n)
	}
	for field, p := range map[string]string{"paths.programs": c.Paths.Programs, "bundles.directory": c.Bundles.Directory} {
		if p != "" && !filepath.IsAbs(p) {
			return wrong(field, "is %q, expected an absolute path", p)
		}
	}
	return nil
}

func (l Log) slog() (slog.Level, error) {
	var level slog.Level
	err := level.UnmarshalText([]byte(l.Level))
	return level, err
}

// SlogLevel returns the level in slog's terms; Info where it is not valid.
func (l Log) SlogLevel() slog.Level {
	level, err := l.slog()
	if err != nil {
		return slog.LevelInfo
	}
	return level
}

// Load reads the file at path. A file that is missing at DefaultPath means the
// defaults.
func Load(path string) (Config, error) {
	text, err := read(path)
	if errors.Is(err, fs.ErrNotExist) && path == DefaultPath {
		return Default(), nil
	}
	if err != nil {
		return Config{}, atelier.Errorf(atelier.Invalid, "cannot read the configuration: %w", err).
			WithRemedy("Check --config and the file's permissions.")
	}
	c, err := Parse(text)
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// read reads at most maxFile bytes.
func read(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("%s has %d bytes, at most %d are allowed", path, info.Size(), maxFile)
	}
	return os.ReadFile(path)
}
