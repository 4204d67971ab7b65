// Package telemetry measures a device and what it serves, keeps the
// measurements in a bounded spool on disk, and sends them to the hub until the
// hub has acknowledged them.
//
// It promises that a measurement reaches the hub's store at most once, and
// exactly once unless the spool overflowed or its disk failed; what was given up
// is counted and reported. It knows neither MQTT (see Publisher) nor how modules run.
package telemetry

import (
	"context"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/golang/snappy"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/otlp"
	"github.com/atelier-edge/atelier/internal/wire"
)

// Options say what to measure and where to keep it.
type Options struct {
	Dir      string        // the spool's directory
	Budget   int64         // bytes that the spool may take on disk
	Interval time.Duration // between measurements
	StateDir string        // whose file system is reported
	// Gateway asks the gateway for its counters.
	Gateway func(context.Context) (atelier.GatewayStatus, error)
	// Modules returns the state of the device's modules.
	Modules func() []atelier.ModuleStatus
	// Content counts what came to the device; nil where nobody counts.
	Content *Content
	// Collected tells of the records that are collected; nil where none are.
	Collected func() []Collected
	// Changed is called when Condition begins to hold or to fail; nil for nobody.
	Changed func()
	Link    Publisher
	Log     *slog.Logger
	FS      durable.FS        // durable.OS{} where nil
	Clock   func() wire.Clock // ReadClock where nil
}

// Telemetry is a device's telemetry. Its methods are safe for concurrent use.
type Telemetry struct {
	*Sender
	spool     *Spool
	opts      Options
	interval  atomic.Int64
	retune    chan struct{}
	started   uint64 // nanoseconds since 1970
	host      hostSampler
	endpoints *endpointCounters

	mu        sync.Mutex
	failure   error   // of the last round
	mourned   Dropped // what was given up before the hub had all that was left
	condition atelier.Condition
}

// Open opens the spool; Run makes it measure and send.
func Open(opts Options) (*Telemetry, error) {
	if opts.FS == nil {
		opts.FS = durable.OS{}
	}
	if opts.Clock == nil {
		opts.Clock = ReadClock
	}
	spool, err := OpenSpool(opts.FS, opts.Dir, opts.Budget)
	if err != nil {
		return nil, err
	}
	t := &Telemetry{
		spool: spool, Sender: NewSender(spool, opts.Link, opts.Clock, opts.Log), opts: opts, retune: make(chan struct{}, 1),
		started: uint64(opts.Clock().Wall.UnixNano()), host: hostSampler{dir: opts.StateDir},
		endpoints: newEndpointCounters(opts.FS, opts.Dir, opts.Log),
	}
	t.interval.Store(int64(opts.Interval))
	return t, nil
}

// SetInterval changes the time between measurements while Run runs.
func (t *Telemetry) SetInterval(d time.Duration) {
	t.interval.Store(int64(d))
	select {
	case t.retune <- struct{}{}:
	default:
	}
}

// Run measures and sends until ctx ends, and closes the spool. The last round
// of measurements is taken when ctx ends, so that a stop leaves no hole.
func (t *Telemetry) Run(ctx context.Context) error {
	var sending sync.WaitGroup
	sending.Go(func() { t.Sender.Run(ctx) })
	timer := time.NewTimer(0)
	defer timer.Stop()
	for running := true; running; {
		select {
		case <-ctx.Done():
			running = false
		case <-t.retune:
			timer.Reset(time.Duration(t.interval.Load()))
			continue
		case <-timer.C:
			timer.Reset(time.Duration(t.interval.Load()))
		}
		// A gateway that hangs must not stop the other measurements, and the
		// last round outlives ctx.
		round, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		t.note(t.Measure(round))
		cancel()
	}
	sending.Wait()
	return t.spool.Close()
}

// Measure takes one round of measurements and spools it. Run calls it.
func (t *Telemetry) Measure(ctx context.Context) error {
	now := t.opts.Clock()
	m := metrics{now: uint64(now.Wall.UnixNano())}
	m.list = t.host.sample(ctx, now)
	modules := t.opts.Modules()
	t.measureEndpoints(ctx, &m, modules)
	moduleMetrics(&m, modules)
	t.measureSpool(&m)
	if t.opts.Content != nil {
		t.opts.Content.measure(&m, t.started)
	}
	if t.opts.Collected != nil {
		collectedMetrics(&m, t.started, t.opts.Collected())
	}
	return t.spoolBatch(now, m.list)
}

func (t *Telemetry) measureEndpoints(ctx context.Context, m *metrics, modules []atelier.ModuleStatus) {
	status, err := t.opts.Gateway(ctx)
	if err != nil {
		m.gauge("atelier.gateway.up", "", "Whether the gateway answers the agent.", point(0))
		return
	}
	m.gauge("atelier.gateway.up", "", "Whether the gateway answers the agent.", point(1))
	names := make(map[string]string, len(modules))
	for i := range modules {
		names[modules[i].Deployment] = modules[i].Name
	}
	endpointMetrics(m, status.Started, t.endpoints.take(&status), names)
}

// moduleStates are the states that are reported, each as 0 or 1: a query can
// then tell a state that ended from a device that fell silent.
var moduleStates = []atelier.ModuleState{
	atelier.Pending, atelier.Fetching, atelier.Preparing, atelier.Starting, atelier.Proving, atelier.Standby,
	atelier.Serving, atelier.Draining, atelier.Stopped, atelier.BackOff, atelier.Refused, atelier.Quarantined,
}

func moduleMetrics(m *metrics, modules []atelier.ModuleStatus) {
	var restarts, states, memory []otlp.Point
	for i := range modules {
		byVersion := map[served]int{}
		for _, slot := range []struct {
			name   string
			status *atelier.SlotStatus
		}{{"current", modules[i].Current}, {"candidate", modules[i].Candidate}, {"trial", modules[i].Trial}} {
			s := slot.status
			if s == nil {
				continue
			}
			key := served{Model: s.Model, Version: s.Version}
			labels := []string{"deployment", modules[i].Name, "model", s.Model, "version", strconv.Itoa(s.Version)}
			for _, state := range moduleStates {
				v := 0.0
				if s.State() == state {
					v = 1
				}
				states = append(states, point(v, append(labels, "slot", slot.name, "state", string(state))...))
			}
			if s.Memory > 0 && s.State() == atelier.Serving {
				memory = append(memory, point(float64(s.Memory), append(labels, "slot", slot.name)...))
			}
			if at, twice := byVersion[key]; twice { // a new rollout of the same version
				restarts[at].Value += float64(s.Restarts)
				continue
			}
			byVersion[key] = len(restarts)
			restarts = append(restarts, point(float64(s.Restarts), labels...))
		}
	}
	m.sum("atelier.module.restarts", "{restart}", "Restarts of the module since its rollout began.", 0, restarts...)
	if len(memory) > 0 {
		m.gauge("atelier.module.memory", "By", "Memory that the module's model took when it was loaded, warm and proven.", memory...)
	}
	m.gauge("atelier.module.state", "", "1 for the state that the module is in, 0 for the others.", states...)
}

func (t *Telemetry) measureSpool(m *metrics) {
	s := t.spool.Stats()
	m.sum("atelier.spool.dropped", "{batch}", "Batches of measurements given up before they reached the hub, since the agent started.",
		t.started, point(float64(s.Dropped.Batches)))
	m.sum("atelier.spool.dropped.samples", "{sample}", "Measurements in those batches.", t.started, point(float64(s.Dropped.Samples)))
	m.gauge("atelier.spool.pending", "{batch}", "Batches that the hub has not acknowledged.", point(float64(s.Pending)))
	m.gauge("atelier.spool.size", "By", "Bytes that the spool takes on disk.", point(float64(s.Bytes)))
}

// spoolBatch encodes metrics into as few batches as fit their frames.
func (t *Telemetry) spoolBatch(now wire.Clock, list []otlp.Metric) error {
	request := otlp.Request{Resources: []otlp.Resource{{Metrics: list}}}
	plain := request.Encode(nil)
	payload := snappy.Encode(nil, plain)
	if len(list) > 1 && (len(payload) > wire.MaxTelemetryPayload || len(plain) > wire.MaxTelemetry) {
		if err := t.spoolBatch(now, list[:len(list)/2]); err != nil {
			return err
		}
		return t.spoolBatch(now, list[len(list)/2:])
	}
	samples := 0
	for i := range list {
		samples += len(list[i].Points) + len(list[i].Histograms)
	}
	return t.spool.Append(Batch{Taken: now, Encoding: wire.Snappy, Payload: payload, Samples: samples})
}
