package routing

import (
	"encoding/json"
	"path/filepath"
	"strings"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/wire"
)

// twin is what a module reports of itself.
type twin struct {
	Version    uint64          `json:"version"`
	Properties json.RawMessage `json:"properties"`
	Time       int64           `json:"time"` // of the last report, milliseconds since 1970

	changed bool // since the workspace was told
}

const (
	twinSuffix = ".json"
	twinFormat = 1
)

// loadTwins reads what modules reported. The workspace is told of all of it once more: it
// may not have got the last of it.
func (r *Router) loadTwins() error {
	list, err := r.opts.FS.ReadDir(filepath.Join(r.opts.Dir, twinsDir))
	if err != nil {
		return durable.Explain(err, "read the twins")
	}
	for _, e := range list {
		module, ok := strings.CutSuffix(e.Name(), twinSuffix)
		if !ok || atelier.CheckName("module", module) != nil {
			continue
		}
		path := filepath.Join(r.opts.Dir, twinsDir, e.Name())
		b, err := durable.ReadFile(r.opts.FS, path)
		if err != nil {
			return err
		}
		t := &twin{changed: true}
		if err := durable.Decode(b, path, twinFormat, t); err != nil {
			return err
		}
		r.twins[module] = t
	}
	return nil
}

// report merges what a module reports into its twin, and returns when that is on disk.
func (r *Router) report(module string, patch []byte) error {
	r.reporting.Lock()
	defer r.reporting.Unlock()
	now := r.twins[module]
	if now == nil {
		now = &twin{}
	}
	merged, err := atelier.MergePatch(now.Properties, patch)
	if err != nil {
		return err
	}
	next := &twin{Version: now.Version + 1, Properties: merged, Time: r.opts.Clock().Wall.UnixMilli(), changed: true}
	b, err := durable.Encode(twinFormat, next)
	if err == nil {
		err = durable.WriteFile(r.opts.FS, filepath.Join(r.opts.Dir, twinsDir, module+twinSuffix), b, 0o600)
	}
	if err != nil {
		return err
	}
	r.twins[module] = next
	return nil
}

// flushTwins puts twins that have changed on their way into the workspace: at most one of
// each module at a time, however often it reports.
func (r *Router) flushTwins() {
	type told struct {
		module string
		twin   *twin
	}
	var all []told
	r.reporting.Lock()
	for module, t := range r.twins {
		if t.changed {
			all = append(all, told{module, t})
		}
	}
	r.reporting.Unlock()
	if len(all) == 0 {
		return
	}
	r.mu.Lock()
	q, err := r.queue(queueKey{})
	r.mu.Unlock()
	if err != nil {
		r.opts.Log.Warn("the workspace cannot be told what modules report", "error", err)
		return
	}
	for _, one := range all {
		kept := make(chan error, 1)
		q.put(wire.ModuleMessage{
			Kind: wire.FromTwin, Module: one.module, Version: one.twin.Version, Time: max(0, one.twin.Time), Payload: one.twin.Properties,
			ContentType: "application/json",
		}, func(err error) { kept <- err })
		if err := <-kept; err != nil {
			r.opts.Log.Warn("the workspace cannot be told what a module reports", "module", one.module, "error", err)
			continue
		}
		r.reporting.Lock()
		one.twin.changed = false
		r.reporting.Unlock()
	}
}
