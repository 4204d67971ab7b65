package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/atelier-edge/atelier/internal/boot"
)

// pair is an older and a newer version of a model, as files.
type pair struct {
	name         string
	older, newer string
	size         int64 // of the newer
	// unseen says that the pair was not looked at while differences were made better.
	unseen bool
}

// published are the pairs that scripts/fetch-pairs fetches.
var published = []pair{
	{name: "silero 4 to 5", older: "silero-4", newer: "silero-5"},
	{name: "silero 5 to 6", older: "silero-5", newer: "silero-6"},
	{name: "smart-turn 3.0 to 3.2", older: "smart-turn-3.0", newer: "smart-turn-3.2"},
	{name: "nudenet 3.0 to 3.4", older: "nudenet-3.0", newer: "nudenet-3.4"},
	{name: "magika 3.2 to 3.3", older: "magika-3.2", newer: "magika-3.3"},
	{name: "ocr-rec 3 to 4", older: "ocr-rec-3", newer: "ocr-rec-4"},
	{name: "ocr-det 3 to 4", older: "ocr-det-3", newer: "ocr-det-4"},
	{name: "silero 6.0 to 6.2", older: "silero-6.0", newer: "silero-6", unseen: true},
	{name: "smart-turn 3.1 to 3.2", older: "smart-turn-3.1", newer: "smart-turn-3.2", unseen: true},
	{name: "ocr-det 4 to 6", older: "ocr-det-4", newer: "ocr-det-6", unseen: true},
	{name: "captcha 1.4 to 1.6", older: "captcha-1.4", newer: "captcha-1.6", unseen: true},
}

const (
	// beyond is how many bytes above the best peer a pair may cost on the wire.
	beyond = 2 << 10
	// worthTiming is the size of a version from which its difference takes long
	// enough for its rates to mean something.
	worthTiming = 8_000_000
	quiet       = time.Second // without a byte, after which a device is done with what was before
)

// delivery is what a pair cost.
type delivery struct {
	pair
	down, up   int64 // at the device's socket
	difference int64 // of that the difference alone; 0 where the version came as it is
	planned    int64 // what the plan said that the device would receive
	received   int64 // what it says that it received
	made       time.Duration
	decoded    time.Duration
	added      float64 // to the agent's resident memory meanwhile, at the peak
	peers      []patch
}

// transferPairs brings versions to a device that has an older one, and counts the
// bytes at the device's socket, from the deploy until the verified file is in the
// device's content store: TLS, MQTT, desired state, plan and all. What other tools
// make of the same two files are their files' sizes, without any protocol.
func transferPairs(ctx context.Context, w *world) ([]Figure, error) {
	pairs, err := w.pairs()
	if err != nil {
		return nil, err
	}
	tools, missing := findPatchTools(ctx)
	for _, tool := range tools {
		fmt.Fprintf(w.out, "  %s: %s; %s\n", tool.name, tool.version, tool.usage())
	}
	for _, name := range missing {
		fmt.Fprintf(w.out, "  %s is missing; 'make test-tools' installs it\n", name)
	}
	if len(tools) == 0 {
		return nil, errors.New("there is no other tool to compare with")
	}
	counted, err := w.counted(ctx)
	if err != nil {
		return nil, err
	}
	defer counted.close()
	all := make([]delivery, len(pairs))
	deliver := func(is func(pair) bool) error {
		for i, p := range pairs {
			if !is(p) {
				continue
			}
			if all[i], err = w.deliver(ctx, counted, fmt.Sprintf("pair-%d", i), p); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			fmt.Fprintf(w.out, "  %s: %s\n", p.name, all[i].way())
		}
		return nil
	}
	// What is timed comes first, alone; then the other tools use the time that the
	// device takes, as they take longest.
	timed := func(p pair) bool { return p.size >= worthTiming }
	if err := deliver(timed); err != nil {
		return nil, err
	}
	failed := make(chan error, 1)
	made := make([][]patch, len(pairs))
	working, stop := context.WithCancel(ctx)
	defer stop()
	go func() { failed <- patchAll(working, w, tools, pairs, made) }()
	err = deliver(func(p pair) bool { return !timed(p) })
	if err != nil {
		stop()
	}
	if err := errors.Join(err, <-failed); err != nil {
		return nil, err
	}
	for i := range all {
		all[i].peers = made[i]
	}
	if err := printDeliveries(w.out, all); err != nil {
		return nil, err
	}
	return pairFigures(all), nil
}

// pairs returns the pairs that are published, and those that are made of one.
func (w *world) pairs() ([]pair, error) {
	var all []pair
	for _, p := range published {
		for _, path := range []*string{&p.older, &p.newer} {
			*path = filepath.Join(w.root, ".cache/pairs", *path+".onnx")
			if _, err := os.Stat(*path); err != nil {
				return nil, fmt.Errorf("'make bench' fetches the pairs: %w", err)
			}
		}
		all = append(all, p)
	}
	dir := filepath.Join(w.dir, "made")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	made, err := madePairs(filepath.Join(w.root, ".cache/pairs/silero-6.onnx"), dir)
	if err != nil {
		return nil, err
	}
	all = append(all, made...)
	for i := range all {
		info, err := os.Stat(all[i].newer)
		if err != nil {
			return nil, err
		}
		all[i].size = info.Size()
	}
	return all, nil
}

// counted boots a hub to which devices come over a counter.
func (w *world) counted(ctx context.Context) (*counter, error) {
	var addresses [2]string
	for i := range addresses {
		var err error
		if addresses[i], err = boot.FreeAddress(); err != nil {
			return nil, err
		}
	}
	// MQTT over WebSocket leads nowhere, so that all bytes are counted.
	counting, nowhere := addresses[0], addresses[1]
	if err := w.boot(ctx, "--advertise-mqtt", counting, "--advertise", nowhere); err != nil {
		return nil, err
	}
	if err := w.register(ctx); err != nil {
		return nil, err
	}
	return startCounter(counting, w.mqtt)
}

// measuring joins a device that sends no telemetry meanwhile, whose acknowledgement
// would not be the version's.
func (w *world) measuring(ctx context.Context, name string) (*device, error) {
	d, err := w.admit(ctx, name)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(d.dir, "agent.toml"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	_, err = f.WriteString("\n[telemetry]\ninterval = \"1h\"\n")
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	return d, w.start(ctx, d)
}

// deliver lets a device of its own run the older version, waits until the hub has
// made the difference to the newer one, and lets the device prefetch that.
func (w *world) deliver(ctx context.Context, c *counter, name string, p pair) (got delivery, err error) {
	got.pair = p
	older, err := digestOf(p.older)
	if err != nil {
		return got, err
	}
	newer, err := digestOf(p.newer)
	if err != nil {
		return got, err
	}
	d, err := w.measuring(ctx, name)
	if err != nil {
		return got, err
	}
	defer func() { err = errors.Join(err, d.agent.Stop(syscall.SIGTERM, 10*time.Second)) }()
	if err := w.registerBeside(ctx, name, "older", p.older); err != nil {
		return got, err
	}
	if _, err := w.bring(ctx, name, d); err != nil {
		return got, err
	}
	if err := w.registerBeside(ctx, name, "newer", p.newer); err != nil {
		return got, err
	}
	began := time.Now()
	if got.difference, err = w.differenceOf(ctx, newer, older); err != nil {
		return got, err
	}
	got.made = time.Since(began)
	if got.planned, err = w.planned(ctx, name, "--prefetch"); err != nil {
		return got, err
	}
	if err := c.settle(ctx); err != nil {
		return got, err
	}
	before, err := memoryOf(d.agent.PID())
	if err == nil {
		err = resetPeak(d.agent.PID())
	}
	if err != nil {
		return got, err
	}
	down, up := c.down.Load(), c.up.Load()
	c.watch(got.came())
	if err := w.atelier(ctx, "deploy", name, "--prefetch", "-q", "--no-wait"); err != nil {
		return got, err
	}
	at, err := d.has(ctx, newer)
	if err != nil {
		return got, err
	}
	got.down, got.up = c.down.Load()-down, c.up.Load()-up
	got.decoded = at.Sub(c.reached())
	after, err := memoryOf(d.agent.PID())
	if err != nil {
		return got, err
	}
	got.added = max(0, after.peak-before.resident)
	if got.received, err = w.received(ctx, name, true); err != nil {
		return got, err
	}
	// The module goes with the deployment, before the agent is stopped.
	if err := w.atelier(ctx, "deployment", "delete", name, "-q"); err != nil {
		return got, err
	}
	return got, c.settle(ctx)
}

// registerBeside registers a version that is the digits classifier with a file
// beside it: old models run on no current engine, made ones on none, and to hub and
// agent content is content. What a file is they see by looking into it.
func (w *world) registerBeside(ctx context.Context, model, version, file string) error {
	dir := filepath.Join(w.dir, model+"-"+version)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for name, from := range map[string]string{"model.onnx": w.digits(1), "weights": file} {
		if err := copyFile(filepath.Join(dir, name), from); err != nil {
			return err
		}
	}
	if err := w.atelier(ctx, "model", "register", model, dir, "--entry", "model.onnx", "-q"); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// differenceOf waits until the hub has made the difference, and returns its size, 0
// where the hub found that it would save too little.
func (w *world) differenceOf(ctx context.Context, target, base string) (int64, error) {
	var index struct {
		Entries []struct {
			Target, Base, Difference string
			Size                     int64 `json:"size_bytes"`
		}
	}
	for deadline := time.Now().Add(10 * time.Minute); time.Now().Before(deadline); {
		b, err := os.ReadFile(filepath.Join(w.dir, "hub/differences/index.json"))
		if err == nil {
			err = json.Unmarshal(b, &index)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, err
		}
		for _, e := range index.Entries {
			if e.Target == target && e.Base == base {
				return e.Size, nil
			}
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return 0, err
		}
	}
	return 0, errors.New("the hub makes no difference of it")
}

// settle waits until nothing has come for a while.
func (c *counter) settle(ctx context.Context) error {
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		before := c.down.Load() + c.up.Load()
		if err := pause(ctx, quiet); err != nil {
			return err
		}
		if c.down.Load()+c.up.Load() == before {
			return nil
		}
	}
	return errors.New("the device's connection does not become quiet")
}

func digestOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	_, err = io.Copy(h, f)
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), errors.Join(err, f.Close())
}

func copyFile(to, from string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// came returns how many bytes the version came as: as a difference, or as it is.
func (d delivery) came() int64 { return cmp.Or(d.difference, d.size) }

func (d delivery) way() string {
	if d.difference == 0 {
		return fmt.Sprintf("%d bytes on the wire, as it is", d.down)
	}
	return fmt.Sprintf("%d bytes on the wire, a difference of %d that was made in %.1f s and decoded in %.1f s", d.down, d.difference, d.made.Seconds(), d.decoded.Seconds())
}

// best returns the smallest that another tool made.
func (d delivery) best() patch {
	return slices.MinFunc(d.peers, func(a, b patch) int { return cmp.Compare(a.order(), b.order()) })
}

func printDeliveries(out io.Writer, all []delivery) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(t, "\n  PAIR\tSIZE\tON THE WIRE\tOF SIZE\tDIFFERENCE\tAROUND IT\tUP\tPLANNED\tRECEIVED\t")
	for _, p := range all[0].peers {
		fmt.Fprintf(t, "%s\t", p.tool)
	}
	fmt.Fprintln(t, "AGAINST THE BEST\t")
	for _, d := range all {
		fmt.Fprintf(t, "  %s\t%d\t%d\t%.1f %%\t%d\t%d\t%d\t%d\t%d\t", d.name, d.size, d.down, 100*float64(d.down)/float64(d.size), d.difference, d.down-d.came(), d.up, d.planned, d.received)
		for _, p := range d.peers {
			fmt.Fprintf(t, "%s\t", p)
		}
		fmt.Fprintf(t, "%+d\t\n", d.down-d.best().size)
	}
	return t.Flush()
}

func pairFigures(all []delivery) []Figure {
	var figures []Figure
	var below, belowUnseen, unseen, seen float64
	var made, decoded, up, around, added, offs []float64
	for _, d := range all {
		best := d.best()
		name := "bytes on the wire, " + d.name
		if d.unseen {
			name += " (not looked at before)"
			unseen++
		} else {
			seen++
		}
		if d.down < best.size {
			if d.unseen {
				belowUnseen++
			} else {
				below++
			}
		}
		f := lower(name, "bytes", []float64{float64(d.down)}).want(float64(best.size + beyond))
		figures = append(figures, f.beside(best.tool, []float64{float64(best.size)}))
		up = append(up, float64(d.up))
		offs = append(offs, off(d.planned, d.received))
		around = append(around, float64(d.down-d.came())/float64(d.down))
		if d.difference == 0 || d.size < worthTiming {
			continue
		}
		made = append(made, float64(d.size)/1e6/d.made.Seconds())
		decoded = append(decoded, float64(d.size)/1e6/d.decoded.Seconds())
		added = append(added, d.added)
	}
	figures = append(figures,
		higher("pairs below all other tools", "of the pairs", []float64{below / seen}).want(0.5),
		higher("pairs below all other tools, of those not looked at before", "of the pairs", []float64{belowUnseen / unseen}).want(0.5),
		lower("bytes around what is transferred, towards the device", "of the bytes on the wire", around),
		lower("bytes from the device meanwhile", "bytes", up),
		offFigure("all pairs", offs))
	if len(made) > 0 {
		figures = append(figures,
			higher("differences made and proved by the hub, versions of 8 MB and more", "MB/s of the version", made),
			higher("differences decoded, verified and synced by the agent, versions of 8 MB and more", "MB/s of the version", decoded),
			lower("atelier-agent resident, what decoding a difference adds at its peak", "bytes", added).want(32e6))
	}
	return figures
}
