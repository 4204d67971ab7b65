//go:build linux

package crash

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/client"
	"github.com/atelier-edge/atelier/internal/boot"
	"github.com/atelier-edge/atelier/internal/durable/powerfs"
)

// world is a hub, two devices and an operator, with the side that shall suffer on
// a disk whose power can be cut.
type world struct {
	point
	dir      string
	disk     *powerfs.Disk
	struck   chan struct{}              // closed when the power went or the kill came
	once     sync.Once                  // closes it
	joining  atomic.Pointer[os.Process] // 'atelier-agent join', while it runs
	hub      *boot.Program
	starts   int // of the hub; each has a log of its own
	login    string
	client   *client.Client
	registry *http.Client // of the container registry
	one, two *device      // one serves, two only measures; one's disk is the agent's side's
	acked    acked
}

// device is a device of a world.
type device struct {
	name    string
	dir     string
	state   string
	gateway string
	agent   *boot.Program
	runs    bool // it was started and is to run
}

// acked is what the programs have said is done.
type acked struct {
	workspace  bool
	runtime    bool
	versions   map[string]atelier.Digest // of the one file of a version, by "model:number"
	join       map[string][]string       // the join command, by device
	device     map[string]string         // id, by device; known from the moment that join has said so
	deployed   int                       // the version that was asked for last
	key        string                    // of the endpoint
	served     int                       // the newest version that has answered
	telemetry  map[string]map[string]string
	image      image
	registered []string // the versions, in the order in which they came
}

// patience is how long anything may take on a busy machine.
const patience = 90 * time.Second

func newWorld(p point, dir string) (*world, error) {
	w := &world{point: p, dir: dir, struck: make(chan struct{}), acked: acked{
		versions: map[string]atelier.Digest{}, join: map[string][]string{}, device: map[string]string{},
		telemetry: map[string]map[string]string{},
	}}
	mount := filepath.Join(dir, "hub")
	var err error
	if w.one, err = w.device("one"); err != nil {
		return nil, err
	}
	if w.two, err = w.device("two"); err != nil {
		return nil, err
	}
	if p.side == "agent" {
		mount = filepath.Join(w.one.dir, "disk")
	}
	if err := os.MkdirAll(mount, 0o700); err != nil {
		return nil, err
	}
	if w.disk, err = powerfs.Mount(mount); err != nil {
		return nil, err
	}
	listen, err := address()
	if err != nil {
		return w, err
	}
	mqtt, err := address()
	if err != nil {
		return w, err
	}
	w.hub = &boot.Program{Path: filepath.Join(bin, "atelier-hub"), Args: []string{
		"--data", filepath.Join(dir, "hub", "data"), "--listen", listen, "--mqtt", mqtt,
	}}
	return w, nil
}

// ports are below those that the kernel hands out: while a program is down, nobody
// else's connection may come to have its port.
var ports struct {
	sync.Mutex
	next int
}

// address returns a loopback address that is free, and that no other point gets.
func address() (string, error) {
	const lowest, count = 12000, 18000
	ports.Lock()
	defer ports.Unlock()
	if ports.next == 0 {
		ports.next = os.Getpid() * 97 // away from another run's
	}
	for {
		ports.next++
		a := fmt.Sprintf("127.0.0.1:%d", lowest+ports.next%count)
		l, err := net.Listen("tcp", a)
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil {
			return "", err
		}
		return a, l.Close()
	}
}

func (w *world) device(name string) (*device, error) {
	d := &device{name: name, dir: filepath.Join(w.dir, name)}
	d.state = filepath.Join(d.dir, "disk", "state")
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return nil, err
	}
	var err error
	if d.gateway, err = address(); err != nil {
		return nil, err
	}
	config := fmt.Sprintf("[paths]\nstate = %q\nrun = %q\nprograms = %q\n[gateway]\nlisten = %q\n[telemetry]\ninterval = \"1s\"\n[disk]\nballast_bytes = 4096\n",
		d.state, filepath.Join(d.dir, "run"), bin, d.gateway)
	if err := os.WriteFile(d.config(), []byte(config), 0o600); err != nil {
		return nil, err
	}
	d.agent = &boot.Program{Path: filepath.Join(bin, "atelier-agent"), Args: []string{"run", "--config", d.config()}, Log: filepath.Join(d.dir, "agent.log")}
	return d, nil
}

func (d *device) config() string { return filepath.Join(d.dir, "agent.toml") }

// startHub starts the hub, waits until it is ready, and logs in where nobody has yet.
func (w *world) startHub(ctx context.Context) error {
	w.starts++
	w.hub.Log = filepath.Join(w.dir, fmt.Sprintf("hub-%d.log", w.starts))
	if err := w.hub.Start(); err != nil {
		return err
	}
	if _, err := w.hub.Says(ctx, "is ready"); err != nil {
		return fmt.Errorf("the hub does not start: %w", err)
	}
	for line := range strings.SplitSeq(w.hub.Output(), "\n") {
		if strings.Contains(line, "atelier login ") {
			w.login, w.client = line, nil // a later one is the one that counts
		}
	}
	if w.client != nil {
		return nil
	}
	if w.login == "" {
		return errors.New("the hub is ready and nobody can log in: it never said how")
	}
	words := strings.Fields(w.login) // atelier login URL --fingerprint F --token T
	authority, err := client.FetchAuthority(ctx, words[2], words[4])
	if err != nil {
		return err
	}
	w.client, err = client.New(client.Config{Hub: words[2], Token: words[6], Authority: authority})
	if err != nil {
		return err
	}
	_, err = w.client.Info(ctx)
	return err
}

// strike ends what writes to the disk. The file system calls it before that program
// hears of the operation that it belongs to, so it must not look at any other process: one
// that is about to end may wait for this very operation, and whoever looks, for it.
// What else shall end is found afterwards, by fallen; on a disk without power it can do nothing.
func (w *world) strike() {
	_ = w.suffering().Signal(syscall.SIGKILL) // fallen sees whether it has ended
	if p := w.joining.Load(); p != nil && w.side == "agent" {
		_ = p.Kill()
	}
	w.once.Do(func() { close(w.struck) })
}

// suffering is the program that is sure to run on the disk, if it runs.
func (w *world) suffering() *boot.Program {
	if w.side == "agent" {
		return w.one.agent
	}
	return w.hub
}

// kill kills what shall end once more and returns how many programs there were.
func (w *world) kill() (int, error) {
	switch {
	case w.side == "hub":
		return boot.Kill(filepath.Join(w.dir, "hub"), "atelier-hub")
	case w.how == "kill" && w.seed%4 != 0:
		return boot.Kill(w.one.dir, "atelier-agent")
	}
	return boot.Kill(w.one.dir) // with gateway, shims and model servers
}

// fallen waits until all that was struck has ended.
func (w *world) fallen(ctx context.Context) error {
	err := boot.Eventually(ctx, patience, func() error {
		n, err := w.kill()
		if err != nil || n > 0 {
			return fmt.Errorf("%d programs are left (%w)", n, err)
		}
		return nil
	})
	<-w.suffering().Exited()
	return err
}

// lose makes the disk what it is when the power comes back, and removes what lay
// in memory only.
func (w *world) lose() error {
	if w.how == "kill" {
		return nil
	}
	var rng *rand.Rand
	if w.seed%3 != 0 { // a third loses all that was not synced, the others by chance
		rng = rand.New(rand.NewPCG(w.seed, 0))
	}
	err := w.disk.Restart(rng)
	if w.side == "agent" {
		err = errors.Join(err, os.RemoveAll(filepath.Join(w.one.dir, "run")))
	}
	return err
}

// end ends everything.
func (w *world) end(ctx context.Context) error {
	err := boot.Eventually(ctx, patience, func() error {
		n, err := boot.Kill(w.dir)
		if err != nil || n > 0 {
			return fmt.Errorf("%d programs are left (%w)", n, err)
		}
		return nil
	})
	return errors.Join(err, w.disk.Close(), os.RemoveAll(w.dir))
}

// logs returns what the programs have said, the end of each.
func (w *world) logs() string {
	files, err := filepath.Glob(filepath.Join(w.dir, "*.log"))
	more, err2 := filepath.Glob(filepath.Join(w.dir, "*", "*.log"))
	text := ""
	for _, f := range append(files, more...) {
		p := boot.Program{Log: f}
		text += fmt.Sprintf("--- %s\n%s\n", strings.TrimPrefix(f, w.dir+"/"), p.Tail(25))
	}
	if err := errors.Join(err, err2); err != nil {
		text += err.Error()
	}
	return text
}
