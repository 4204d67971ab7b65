package telemetry

import (
	"context"
	"runtime"
	"slices"
	"strings"

	"github.com/shirou/gopsutil/v3/cpu"
	"github.com/shirou/gopsutil/v3/disk"
	"github.com/shirou/gopsutil/v3/host"
	"github.com/shirou/gopsutil/v3/load"
	"github.com/shirou/gopsutil/v3/mem"
	"github.com/shirou/gopsutil/v3/net"

	"github.com/atelier-edge/atelier/internal/otlp"
	"github.com/atelier-edge/atelier/internal/wire"
)

// The most network interfaces and temperature sensors that are reported: a host
// of containers makes interfaces by the hundred.
const (
	maxInterfaces   = 16
	maxTemperatures = 32
)

// hostSampler measures the machine. What a machine does not tell is absent, never 0.
type hostSampler struct {
	dir  string // whose file system is reported
	last *cpu.TimesStat
}

// sample measures. Names follow the OpenTelemetry semantic conventions for
// system, process and hardware metrics where they have one; docs/telemetry.md lists them.
func (h *hostSampler) sample(ctx context.Context, now wire.Clock) []otlp.Metric {
	m := metrics{now: uint64(now.Wall.UnixNano())}
	if now.Monotone > 0 {
		m.boot = uint64(now.Wall.Add(-now.Monotone).UnixNano())
		m.gauge("system.uptime", "s", "Time since the machine booted.", point(now.Monotone.Seconds()))
	}
	h.cpu(ctx, &m)
	if v, err := load.AvgWithContext(ctx); err == nil {
		m.gauge("system.cpu.load_average.1m", "", "Processes that run or wait, averaged over 1 minute.", point(v.Load1))
		m.gauge("system.cpu.load_average.5m", "", "Processes that run or wait, averaged over 5 minutes.", point(v.Load5))
		m.gauge("system.cpu.load_average.15m", "", "Processes that run or wait, averaged over 15 minutes.", point(v.Load15))
	}
	if v, err := mem.VirtualMemoryWithContext(ctx); err == nil {
		state := func(s string, n uint64) otlp.Point { return point(float64(n), "system.memory.state", s) }
		m.gauge("system.memory.usage", "By", "Memory by what it is used for.",
			state("used", v.Used), state("free", v.Free), state("cached", v.Cached), state("buffers", v.Buffers))
		m.gauge("system.memory.limit", "By", "Memory that the machine has.", point(float64(v.Total)))
	}
	if v, err := disk.UsageWithContext(ctx, h.dir); err == nil {
		state := func(s string, n uint64) otlp.Point { return point(float64(n), "system.filesystem.state", s) }
		m.gauge("system.filesystem.usage", "By", "Space of the file system that holds the agent's state.",
			state("used", v.Used), state("free", v.Free), state("reserved", v.Total-min(v.Total, v.Used+v.Free)))
		m.gauge("system.filesystem.limit", "By", "Size of the file system that holds the agent's state.", point(float64(v.Total)))
	}
	network(ctx, &m)
	temperatures(ctx, &m)
	if n, ok := resident(); ok {
		m.gauge("process.memory.usage", "By", "Resident memory of the agent itself.", point(float64(n)))
	}
	if n, ok := descriptors(); ok {
		m.gauge("process.unix.file_descriptor.count", "{file_descriptor}", "File descriptors that the agent itself holds open.", point(float64(n)))
	}
	m.gauge("go.goroutine.count", "{goroutine}", "Goroutines of the agent itself.", point(float64(runtime.NumGoroutine())))
	return m.list
}

func (h *hostSampler) cpu(ctx context.Context, m *metrics) {
	m.gauge("system.cpu.logical.count", "{cpu}", "Logical processors.", point(float64(runtime.NumCPU())))
	times, err := cpu.TimesWithContext(ctx, false)
	if err != nil || len(times) == 0 {
		return
	}
	now := times[0]
	mode := func(s string, v float64) otlp.Point { return point(v, "cpu.mode", s) }
	m.sum("system.cpu.time", "s", "Time that the processors spent, by mode.", m.boot,
		mode("user", now.User), mode("system", now.System), mode("idle", now.Idle), mode("iowait", now.Iowait),
		mode("nice", now.Nice), mode("interrupt", now.Irq+now.Softirq), mode("steal", now.Steal))
	if before := h.last; before != nil {
		// Guest time is part of user time in Linux.
		total := now.Total() - now.Guest - now.GuestNice - (before.Total() - before.Guest - before.GuestNice)
		idle := now.Idle + now.Iowait - before.Idle - before.Iowait
		if total > 0 {
			m.gauge("system.cpu.utilization", "1", "Share of the processors' time in use since the last measurement.",
				point(min(max(1-idle/total, 0), 1)))
		}
	}
	h.last = &now
}

func network(ctx context.Context, m *metrics) {
	list, err := net.IOCountersWithContext(ctx, true)
	if err != nil {
		return
	}
	list = slices.DeleteFunc(list, func(c net.IOCountersStat) bool {
		return c.Name == "lo" || strings.HasPrefix(c.Name, "veth")
	})
	slices.SortFunc(list, func(a, b net.IOCountersStat) int { return strings.Compare(a.Name, b.Name) })
	var io, errors, dropped []otlp.Point
	for _, c := range list[:min(len(list), maxInterfaces)] {
		both := func(list []otlp.Point, sent, received uint64) []otlp.Point {
			return append(list,
				point(float64(sent), "network.interface.name", c.Name, "network.io.direction", "transmit"),
				point(float64(received), "network.interface.name", c.Name, "network.io.direction", "receive"))
		}
		io = both(io, c.BytesSent, c.BytesRecv)
		errors = both(errors, c.Errout, c.Errin)
		dropped = both(dropped, c.Dropout, c.Dropin)
	}
	m.sum("system.network.io", "By", "Bytes over each network interface.", m.boot, io...)
	m.sum("system.network.errors", "{error}", "Errors of each network interface.", m.boot, errors...)
	m.sum("system.network.packet.dropped", "{packet}", "Packets that each network interface dropped.", m.boot, dropped...)
}

func temperatures(ctx context.Context, m *metrics) {
	// An error may only say that one of several sensors could not be read.
	list, _ := host.SensorsTemperaturesWithContext(ctx)
	var points []otlp.Point
	seen := map[string]bool{}
	for _, t := range list {
		if seen[t.SensorKey] || t.Temperature == 0 || len(points) == maxTemperatures {
			continue // a sensor that is not wired reads 0
		}
		seen[t.SensorKey] = true
		points = append(points, point(t.Temperature, "hw.id", t.SensorKey))
	}
	m.gauge("hw.temperature", "Cel", "Temperature at each sensor.", points...)
}

// metrics collects metrics of one time.
type metrics struct {
	now, boot uint64 // nanoseconds since 1970; boot is 0 when it is not known
	list      []otlp.Metric
}

// point makes a measurement with attributes given as keys and values in turn.
func point(v float64, attributes ...string) otlp.Point {
	p := otlp.Point{Value: v}
	for i := 0; i+1 < len(attributes); i += 2 {
		p.Attributes = append(p.Attributes, otlp.Attribute{Key: attributes[i], Value: attributes[i+1]})
	}
	return p
}

func (m *metrics) gauge(name, unit, help string, points ...otlp.Point) {
	m.add(otlp.Metric{Name: name, Unit: unit, Description: help, Kind: otlp.Gauge}, 0, points)
}

// sum adds a total that only grows since start.
func (m *metrics) sum(name, unit, help string, start uint64, points ...otlp.Point) {
	m.add(otlp.Metric{
		Name: name, Unit: unit, Description: help, Kind: otlp.Sum,
		Temporality: otlp.Cumulative, Monotonic: true,
	}, start, points)
}

// histogram adds a histogram, where it has points.
func (m *metrics) histogram(name, unit, help string, points ...otlp.HistogramPoint) {
	if len(points) > 0 {
		m.list = append(m.list, otlp.Metric{
			Name: name, Unit: unit, Description: help, Kind: otlp.Histogram, Temporality: otlp.Cumulative, Histograms: points,
		})
	}
}

func (m *metrics) add(metric otlp.Metric, start uint64, points []otlp.Point) {
	if len(points) == 0 {
		return
	}
	for i := range points {
		points[i].Start, points[i].Time = start, m.now
	}
	metric.Points = points
	m.list = append(m.list, metric)
}
