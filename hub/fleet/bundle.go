package fleet

import (
	"context"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/bundle"
	"github.com/atelier-edge/atelier/internal/trust"
)

// BundleSpec says what a bundle shall hold. Everything is named by name or id.
type BundleSpec struct {
	// Deployments select the bundle's devices: all those that they are on, or of
	// Devices those that they are on.
	Deployments []string
	// Devices are the bundle's devices where Deployments are empty.
	Devices []string
	// From are versions, MODEL:NUMBER, whose files the devices have: they are left out.
	From []string
	// SinceDevice is a device; what it was last known to hold is left out.
	SinceDevice string
}

// ExportBundle lays out a bundle with the newest desired states of devices and all
// that those need: the same bytes that the devices would get over MQTT. NotFound for
// what there is none of, Conflict for a device that cannot run one of the
// deployments, and for a SinceDevice of which nothing is known.
func (f *Fleet) ExportBundle(ctx context.Context, workspace string, spec BundleSpec) (*bundle.Layout, error) {
	if len(spec.Deployments) == 0 && len(spec.Devices) == 0 {
		return nil, atelier.Errorf(atelier.Invalid, "neither a deployment nor a device is named").WithField("deployments")
	}
	var devices []atelier.Device
	err := f.store.View(ctx, func(tx store.Tx) (err error) {
		devices, err = bundleDevices(tx, workspace, spec)
		return err
	})
	if err != nil {
		return nil, err
	}
	ids := make([]string, len(devices))
	for i := range devices {
		ids[i] = devices[i].ID
	}
	// What was deployed a moment ago may not be in the states yet.
	if err := f.resolveDevices(ctx, workspace, ids, nil); err != nil {
		return nil, err
	}
	signer, err := f.authority.StateSigner(workspace)
	if err != nil {
		return nil, err
	}
	c := bundle.Config{Workspace: workspace, Created: f.clock.Now().UTC().Truncate(time.Second)}
	var p packing
	err = f.store.View(ctx, func(tx store.Tx) (err error) {
		c.Devices = nil
		p, err = bundleOf(tx, workspace, spec, devices, &c)
		return err
	})
	if err != nil {
		return nil, err
	}
	layers, err := f.pack(ctx, p, &c)
	if err != nil {
		return nil, err
	}
	if c.Trust, err = f.authority.TrustChain(workspace, 0, 0); err != nil {
		return nil, err
	}
	return bundle.Build(c, layers, func(payloadType string, payload []byte) ([]byte, error) {
		return trust.Sign(payloadType, payload, signer)
	})
}

// bundleDevices returns the devices that a bundle is for.
func bundleDevices(tx store.Tx, workspace string, spec BundleSpec) ([]atelier.Device, error) {
	var named, all []atelier.Device
	for _, ref := range spec.Devices {
		d, err := catalog.Devices.Resolve(tx, workspace, "", ref)
		if err != nil {
			return nil, err
		}
		if d.Revoked != nil {
			return nil, atelier.Errorf(atelier.Conflict, "device %q was revoked, and is told nothing any more", d.Name).
				WithRemedy("Join it again, or export for other devices.")
		}
		named = append(named, d)
	}
	if len(spec.Deployments) == 0 {
		return named, nil
	}
	selectors := map[string]atelier.Selector{}
	for _, ref := range spec.Deployments {
		d, err := catalog.Deployments.Resolve(tx, workspace, "", ref)
		if err != nil {
			return nil, err
		}
		selectors[d.Name] = d.Selector
	}
	selected := func(d *atelier.Device) bool {
		for _, s := range selectors {
			if s.Match(d) {
				return true
			}
		}
		return false
	}
	if len(named) > 0 {
		for i := range named {
			if !selected(&named[i]) {
				return nil, atelier.Errorf(atelier.Conflict, "none of the deployments is on device %q", named[i].Name).
					WithRemedy("Deploy to it first, or name the device alone to export all that it shall run.")
			}
		}
		return named, nil
	}
	err := catalog.Devices.Each(tx, store.Query{Workspace: workspace}, func(d atelier.Device) error {
		if d.Revoked == nil && selected(&d) {
			all = append(all, d)
		}
		return nil
	})
	if err == nil && len(all) == 0 {
		err = atelier.Errorf(atelier.Conflict, "no device is selected by %s", strings.Join(spec.Deployments, ", ")).
			WithRemedy("A bundle is signed for devices: join one that the deployment selects.")
	}
	return all, err
}

// packing is what goes into a bundle: the states, and the files that they need.
type packing struct {
	states []bundle.Source
	files  []packed
	held   holding
}

// packed is a file, and what of the devices' content it is likely to resemble; ""
// for nothing.
type packed struct {
	atelier.File
	base atelier.Digest
}

// bundleOf reads the devices' states and what they need.
func bundleOf(tx store.Tx, workspace string, spec BundleSpec, devices []atelier.Device, c *bundle.Config) (p packing, err error) {
	ws, err := catalog.Workspaces.Get(tx, "", workspace)
	if err != nil {
		return p, err
	}
	c.WorkspaceName = ws.Name
	if p.held, err = heldBy(tx, workspace, spec); err != nil {
		return p, err
	}
	listed := map[atelier.Digest]bool{}
	for i := range devices {
		d := &devices[i]
		state, err := catalog.DesiredStates.Get(tx, workspace, d.ID)
		if err != nil {
			return p, err
		}
		if err := runs(tx, workspace, spec, d, &state); err != nil {
			return p, err
		}
		layer := bundle.State(state.Envelope)
		p.states = append(p.states, layer)
		c.Devices = append(c.Devices, bundle.Device{ID: d.ID, Name: d.Name, Position: state.Position, State: layer.Digest})
		for _, module := range state.Running() {
			for _, file := range module.Content() {
				if !listed[file.Digest] {
					listed[file.Digest] = true
					p.files = append(p.files, packed{file, p.held.base(file.Path, file.Path == module.Model.Variant.Entry)})
				}
			}
		}
	}
	return p, nil
}

// pack returns the layers of a bundle, and lists its files. What the devices hold is
// left out; a difference to what they hold takes the place of a content where it is
// worth it.
func (f *Fleet) pack(ctx context.Context, p packing, c *bundle.Config) ([]bundle.Source, error) {
	layers := p.states
	for _, file := range p.files {
		entry := bundle.File{File: file.File, MediaType: bundle.TypeContent, Held: p.held.digests[file.Digest]}
		if !entry.Held {
			source, d, err := f.changesOf(ctx, file)
			if err == nil && d == nil {
				source, err = f.contentOf(file.File)
			}
			if err != nil {
				return nil, err
			}
			if entry.Difference = d; d != nil {
				c.Requires = []string{bundle.FeatureDifferences}
			}
			layers = append(layers, source)
		}
		c.Files = append(c.Files, entry)
	}
	return layers, nil
}

// changesOf returns the layer of the difference that brings a file to who holds its
// base, once it is made; none where none is worth it.
func (f *Fleet) changesOf(ctx context.Context, file packed) (source bundle.Source, d *bundle.Difference, err error) {
	if file.base == "" || f.differences == nil {
		return source, nil, nil
	}
	found, ready := f.differences.Find(file.Digest, file.base)
	if ready != nil {
		select {
		case <-ready:
		case <-ctx.Done():
			return source, nil, ctx.Err()
		}
		found, _ = f.differences.Find(file.Digest, file.base)
	}
	if found == nil {
		return source, nil, nil
	}
	size := found.Blob.Size()
	if err := found.Blob.Close(); err != nil {
		return source, nil, err
	}
	return bundle.Changes(found.Digest, size, func() (io.ReadCloser, error) {
		now, _ := f.differences.Find(file.Digest, file.base)
		if now == nil {
			return nil, atelier.Errorf(atelier.Unavailable, "the difference to %q is gone", file.Path).WithRemedy("Export again.")
		}
		return blobReader{io.NewSectionReader(now.Blob, 0, now.Blob.Size()), now.Blob}, nil
	}), &bundle.Difference{Digest: found.Digest, Bases: found.Bases}, nil
}

// runs checks that a device's state has those of the named deployments that select it.
func runs(tx store.Tx, workspace string, spec BundleSpec, d *atelier.Device, state *catalog.DesiredState) error {
	for _, ref := range spec.Deployments {
		dep, err := catalog.Deployments.Resolve(tx, workspace, "", ref)
		if err != nil {
			return err
		}
		for _, u := range state.Unmet {
			if u.Deployment == dep.ID && u.Part() != catalog.Collected {
				return atelier.Errorf(atelier.Conflict, "device %q cannot run deployment %q, %s: %s", d.Name, dep.Name, u.Why.Reason(), u.Why.Message()).
					WithRemedy("%s", u.Why.Remedy())
			}
		}
	}
	return nil
}

// contentOf returns the layer of a file that the hub holds.
func (f *Fleet) contentOf(file atelier.File) (bundle.Source, error) {
	if _, err := f.content.Info(file.Digest); err != nil {
		return bundle.Source{}, atelier.Errorf(atelier.CodeOf(err), "%q cannot be exported: %w", file.Path, err).
			WithRemedy("Register the model version, or the runtime, again.")
	}
	return bundle.Content(file, func() (io.ReadCloser, error) {
		b, err := f.content.Open(file.Digest)
		if err != nil {
			return nil, err
		}
		return blobReader{io.NewSectionReader(b, 0, b.Size()), b}, nil
	}), nil
}

// blobReader reads a blob from its beginning to its end.
type blobReader struct {
	io.Reader
	blob io.Closer
}

func (r blobReader) Close() error { return r.blob.Close() }

// holding is what the devices of a bundle hold.
type holding struct {
	digests map[atelier.Digest]bool
	paths   map[string]atelier.Digest
	entry   atelier.Digest // of the last variant
}

func (h *holding) add(v *atelier.Variant, more ...atelier.File) {
	for _, file := range append(slices.Clone(v.Files), more...) {
		h.digests[file.Digest], h.paths[file.Path] = true, file.Digest
		if file.Path == v.Entry {
			h.entry = file.Digest
		}
	}
}

// base returns the content that a file is likely to resemble: that of the same path,
// or what the engine loads where the file is that.
func (h *holding) base(path string, entry bool) atelier.Digest {
	if d, ok := h.paths[path]; ok || !entry {
		return d
	}
	return h.entry
}

// heldBy returns what a bundle leaves out.
func heldBy(tx store.Tx, workspace string, spec BundleSpec) (holding, error) {
	h := holding{digests: map[atelier.Digest]bool{}, paths: map[string]atelier.Digest{}}
	for _, ref := range spec.From {
		v, err := versionOf(tx, workspace, ref)
		if err != nil {
			return h, err
		}
		for i := range v.Variants {
			h.add(&v.Variants[i])
		}
	}
	if spec.SinceDevice == "" {
		return h, nil
	}
	d, err := catalog.Devices.Resolve(tx, workspace, "", spec.SinceDevice)
	if err != nil {
		return h, err
	}
	reported, err := catalog.ReportedStates.Get(tx, workspace, d.ID)
	if err != nil && !isNotFound(err) {
		return h, err
	}
	if len(reported.Holds) == 0 {
		return h, atelier.Errorf(atelier.Conflict, "device %q has not reported yet that it runs something", d.Name).
			WithRemedy("Name what it has with --from MODEL:VERSION, or export everything.")
	}
	for i := range reported.Holds {
		m := &reported.Holds[i]
		if m.Runtime == nil {
			h.add(&m.Model.Variant)
		} else {
			h.add(&m.Model.Variant, m.Runtime.Files...)
		}
	}
	return h, nil
}

// versionOf returns the version that a reference, MODEL:NUMBER, names.
func versionOf(tx store.Tx, workspace, ref string) (v atelier.Version, err error) {
	name, number, _ := strings.Cut(ref, ":")
	n, err := strconv.Atoi(number)
	if err != nil || n < 1 {
		return v, atelier.Errorf(atelier.Invalid, "%.80q names no version; write MODEL:NUMBER", ref).WithField("from")
	}
	m, err := catalog.Models.Resolve(tx, workspace, "", name)
	if err != nil {
		return v, err
	}
	v, err = catalog.Versions.Find(tx, workspace, m.ID, strconv.Itoa(n))
	if isNotFound(err) {
		err = atelier.Errorf(atelier.NotFound, "model %q has no version %d", m.Name, n)
	}
	return v, err
}

// holds returns the modules that a device has on its disk, as far as its reports
// tell: those that it says to have started, in the words of the states that it got.
func holds(before, desired []atelier.Module, reported []atelier.ModuleStatus) []atelier.Module {
	var now []atelier.Module
	for _, m := range reported {
		for _, c := range []*atelier.SlotStatus{m.Current, m.Trial} {
			if c == nil {
				continue
			}
			lists := [][]atelier.Module{desired, before}
			if c.State() != atelier.Serving && c.State() != atelier.Standby {
				lists = lists[1:] // where it ran once, its content is there
			}
			for _, known := range lists {
				if i := slices.IndexFunc(known, func(k atelier.Module) bool { return k.Rollout == c.Rollout }); i >= 0 {
					now = append(now, known[i])
					break
				}
			}
		}
	}
	return now
}
