package fleet

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/content/transfer"
	"github.com/atelier-edge/atelier/internal/wire"
)

// forecast says what a deploy would bring to a device, and which differences that
// are being made may change it.
func (f *Fleet) forecast(o *outlook, given map[made]bool) (atelier.DevicePlan, map[made]<-chan struct{}) {
	p := atelier.DevicePlan{
		Device: o.device.ID, DeviceName: o.device.Name, Connected: o.device.Connected, Files: []atelier.FilePlan{},
	}
	run, hold, why := o.wanted()
	if p.Refusal = why; why != nil {
		return p, nil
	}
	h := o.holding()
	p.Unknown = h.unknown
	p.Rate, p.RateFrom = o.rate(h.storage.Rate)
	if opens := opening(o.now, o.device.Transfer, o.policy); opens.After(o.now) {
		p.Opens = &opens
	}
	missing := o.list(&p, h, slices.Concat(run, hold))
	var need int64
	for _, i := range missing {
		need += p.Files[i].Size
	}
	room := o.room(h, need)
	if err := room.Err(); err != nil && h.complete {
		full := atelier.BecauseOf(atelier.ReasonNoSpace, err)
		p.Refusal = &full
	} else if err != nil && o.device.Facts.DiskFree > 0 {
		p.Unknown = append(p.Unknown, "whether it fits: it "+err.Error()+", before old content is removed")
	}
	p.Disk = need
	pending := map[made]<-chan struct{}{}
	for _, i := range missing {
		took, pair, ready := f.way(o, h, &p.Files[i], room.Free-room.Reserve)
		if ready != nil && !given[pair] {
			pending[pair] = ready
			p.Unknown = append(p.Unknown, p.Files[i].Why)
		}
		p.Wire += p.Files[i].Wire
		p.Seconds += took.Seconds()
	}
	if p.Wire > 0 {
		p.Seconds += float64(p.Wire) / float64(p.Rate)
	} else {
		p.Rate, p.RateFrom = 0, ""
	}
	p.Estimate = len(p.Unknown) > 0
	p.Way, p.Why = o.summary(&p, missing, run, hold)
	return p, pending
}

// list notes the files of modules, each content once, and returns which of them are
// missing, by their places in the list.
func (o *outlook) list(p *atelier.DevicePlan, h *stock, modules []*atelier.Module) (missing []int) {
	seen := map[atelier.Digest]bool{}
	for _, m := range modules {
		for _, file := range m.Content() {
			if seen[file.Digest] {
				continue
			}
			seen[file.Digest] = true
			one := atelier.FilePlan{File: file, Way: atelier.WayThere}
			if _, there := h.content[file.Digest]; !there {
				one.Way = atelier.WayWhole
				missing = append(missing, len(p.Files))
			}
			p.Files = append(p.Files, one)
		}
	}
	return missing
}

// summary says in a word and a sentence how it comes.
func (o *outlook) summary(p *atelier.DevicePlan, missing []int, run, hold []*atelier.Module) (way, why string) {
	switch {
	case p.Refusal != nil:
		return "", ""
	case len(missing) > 0:
		largest := &p.Files[slices.MaxFunc(missing, func(a, b int) int { return cmp.Compare(p.Files[a].Size, p.Files[b].Size) })]
		return largest.Way, largest.Why
	case o.settled(run, hold):
		return atelier.WayNone, "the device has it and is as it would be"
	}
	return atelier.WayThere, "all of it is on the device"
}

// rate returns the bytes a second in which content will come to the device, and from
// where that is known.
func (o *outlook) rate(measured int64) (rate int64, from string) {
	rate, from = measured, atelier.RateMeasured
	if rate <= 0 {
		rate, from = assumedRate, atelier.RateAssumed
	}
	if limit := o.device.Transfer.Limit(); limit > 0 && limit < rate {
		rate, from = limit, atelier.RateBudget
	}
	return rate, from
}

// way works out how a file that is missing comes, with so much room on the disk: as
// difference chooses when the device asks for it. It returns how long the device is at
// making the content, and what is being made that would change the way.
func (f *Fleet) way(o *outlook, h *stock, file *atelier.FilePlan, room int64) (took time.Duration, pair made, ready <-chan struct{}) {
	file.Way, file.Wire = atelier.WayWhole, transfer.Cost(file.Size, wire.MaxPacket)
	offer := transfer.Offer{Target: file.Digest, Size: file.Size, Missing: file.Size, Rate: uint64(max(0, h.storage.Rate))}
	for _, d := range atelier.Resembling(file.File, h.placed, h.staged) {
		if _, there := h.content[d]; there {
			offer.Bases = append(offer.Bases, d)
		}
	}
	c := choice{verdict: unavailable}
	if f.differences != nil {
		bases, err := f.own(&o.next, offer.Bases)
		if err != nil {
			f.log.Warn("a plan knows nothing of a device's bases", "device", o.device.ID, "error", err)
		}
		c = f.choose(offer, bases)
	}
	base := h.names[c.base]
	if c.pending != nil {
		file.Base, file.Why = base, c.why(base, rateOf(offer))
		return 0, made{file.Digest, c.base}, c.pending.Ready
	}
	d := c.difference
	if d == nil {
		file.Why = c.why(base, rateOf(offer))
		return 0, pair, nil
	}
	size := d.Blob.Size()
	if err := d.Blob.Close(); err != nil {
		f.log.Warn("a difference could not be closed", "digest", d.Digest, "error", err)
	}
	if !transfer.Takes(size, file.Size, file.Size, room) {
		file.Why = "its disk has no room for a difference and what is made of it at once"
		return 0, pair, nil
	}
	file.Way, file.Base, file.Wire = atelier.WayDifference, base, transfer.DifferenceCost(size, wire.MaxPacket, len(d.Bases))
	if c.base == "" {
		file.Way = atelier.WayCompressed
	}
	file.Why = c.why(base, rateOf(offer))
	return d.Decoding, pair, nil
}

// why says why the way was chosen. base is what the choice's base is in words, rate
// that of the device.
func (c *choice) why(base string, rate float64) string {
	speed := atelier.FormatBytes(int64(rate)) + "/s"
	if c.base == "" {
		switch c.verdict {
		case smaller:
			return "nothing on the device resembles it, and at " + speed + " it is there sooner when it is compressed"
		case unmade:
			return "nothing on the device resembles it; it is being compressed, and comes as it is until then"
		case useless:
			return "nothing on the device resembles it, and to compress it saves less than a twentieth"
		case slower, fastLine:
			return "nothing on the device resembles it, and at " + speed + " it is not there sooner when it is compressed"
		case unavailable:
			return "this hub makes no differences"
		}
	}
	switch c.verdict {
	case unmade:
		return "a difference to " + base + " is being made; it comes as it is until then"
	case useless:
		return "a difference to " + base + " saves less than a twentieth"
	case slower:
		return "at " + speed + " a difference to " + base + " takes the device longer than it saves"
	}
	return base + " is on the device"
}

// stock is what is known of the content on a device.
type stock struct {
	storage  atelier.Storage
	complete bool // storage is the device's own word, and all of it
	content  map[atelier.Digest]atelier.Stored
	placed   []atelier.Placed // as they will be when the content is asked for
	staged   []*atelier.Module
	names    map[atelier.Digest]string // what content is, in words
	current  map[atelier.Digest]bool   // is needed by what runs now
	unknown  []string
}

// holding gathers what is known: what the device said last, in the words of the
// states that it got.
func (o *outlook) holding() *stock {
	h := &stock{content: map[atelier.Digest]atelier.Stored{}, names: map[atelier.Digest]string{}, current: map[atelier.Digest]bool{}}
	known := map[string]*atelier.Module{} // by rollout
	for _, list := range [][]atelier.Module{o.reported.Holds, o.old.All(), o.next.All()} {
		for i := range list {
			known[list[i].Rollout] = &list[i]
		}
	}
	h.place(o, known)
	switch state := o.reported.State; {
	case state != nil && state.Storage != nil:
		h.storage, h.complete = sound(*state.Storage), !state.Storage.More
		for _, s := range h.storage.Content {
			h.content[s.Digest] = s
		}
		if !h.complete {
			h.unknown = append(h.unknown, "the device has more content than it lists")
		}
	default:
		h.assume(o, known)
		h.unknown = append(h.unknown, "the device does not say what content it has; this is by what it runs")
	}
	if !o.device.Connected {
		h.unknown = append(h.unknown, "the device is away; this is by what it said last")
	}
	if o.moving() {
		h.unknown = append(h.unknown, "the device is bringing up a module; this is by what it had before")
	}
	return h
}

// place says where modules will be on the device once it has the next state: what it
// runs stays, and what is new comes beside it.
func (h *stock) place(o *outlook, known map[string]*atelier.Module) {
	placed := map[string]*atelier.Placed{}
	at := func(deployment string) *atelier.Placed {
		if placed[deployment] == nil {
			placed[deployment] = &atelier.Placed{}
		}
		return placed[deployment]
	}
	add := func(p *atelier.Placed, m *atelier.Module) {
		p.All = append(p.All, m)
		h.name(m, o.Model)
	}
	var state atelier.ReportedState
	if o.reported.State != nil {
		state = *o.reported.State
	}
	for _, s := range state.Modules {
		if s.Current == nil {
			continue
		}
		m := known[s.Current.Rollout]
		if m == nil {
			h.unknown = append(h.unknown, fmt.Sprintf("the device runs %s:%d, of which the hub does not know the files", s.Current.Model, s.Current.Version))
			continue
		}
		p := at(s.Deployment)
		p.Current = m
		add(p, m)
		for _, file := range m.Content() {
			h.current[file.Digest] = true
		}
	}
	running := o.next.Running()
	for i := range running {
		m := &running[i]
		if p := at(m.Deployment); p.Current == nil || p.Current.Rollout != m.Rollout {
			add(p, m)
		}
	}
	if state.Storage != nil {
		for _, k := range state.Storage.Kept {
			add(at(k.Deployment), &atelier.Module{Deployment: k.Deployment, Model: atelier.ModuleModel{
				Name: k.Model, Version: k.Version, Variant: atelier.Variant{Entry: k.Entry, Files: k.Files},
			}})
		}
	}
	for i := range o.next.Staged {
		h.staged = append(h.staged, &o.next.Staged[i])
	}
	for _, deployment := range slices.Sorted(maps.Keys(placed)) {
		h.placed = append(h.placed, *placed[deployment])
	}
}

// name notes what the content of a module is, for whoever deploys a model.
func (h *stock) name(m *atelier.Module, model string) {
	set := func(files []atelier.File, name string) {
		for _, file := range files {
			if h.names[file.Digest] == "" {
				h.names[file.Digest] = name
			}
		}
	}
	version := fmt.Sprintf("version %d", m.Model.Version)
	if m.Model.Name != model {
		version += " of " + m.Model.Name
	}
	if m.Runtime != nil {
		set(m.Runtime.Files, m.Runtime.Name+" "+m.Runtime.Version)
	}
	set(m.Model.Variant.Files, version)
}

// assume takes what the device has run, or says to hold, for what is there.
func (h *stock) assume(o *outlook, known map[string]*atelier.Module) {
	add := func(m *atelier.Module) {
		for _, file := range m.Content() {
			h.content[file.Digest] = atelier.Stored{Digest: file.Digest, Size: file.Size}
		}
	}
	for i := range o.reported.Holds {
		add(&o.reported.Holds[i])
	}
	if o.reported.State == nil {
		return
	}
	for _, s := range o.reported.State.Modules {
		if s.Staged != nil && s.Staged.State() == atelier.StagedState && known[s.Staged.Rollout] != nil {
			add(known[s.Staged.Rollout])
		}
	}
}

// moving reports whether the device is at a module, and may have more content than it
// said last.
func (o *outlook) moving() bool {
	return o.reported.State != nil && slices.ContainsFunc(o.reported.State.Modules, func(m atelier.ModuleStatus) bool { return m.Moving() })
}

// room weighs so many bytes that are missing against the device's disk, as the agent
// does before it fetches: where it is short, content goes that nothing will need.
func (o *outlook) room(h *stock, need int64) atelier.Room {
	r := atelier.Room{Need: need, Free: o.device.Facts.DiskFree, Reserve: h.storage.Reserve}
	if r.Short() == 0 {
		return r
	}
	stays := maps.Clone(h.current)
	mark := func(modules []atelier.Module, in map[atelier.Digest]bool) {
		for i := range modules {
			for _, file := range modules[i].Content() {
				in[file.Digest] = true
			}
		}
	}
	mark(o.next.All(), stays)
	kept := map[atelier.Digest]bool{}
	for _, k := range h.storage.Kept {
		for _, file := range k.Files {
			kept[file.Digest] = h.storage.KeepsPrevious
		}
	}
	leaves := map[atelier.Digest]bool{} // with the state that there is now
	mark(o.old.All(), leaves)
	for d, s := range h.content {
		if !stays[d] && !kept[d] && (s.Unneeded || leaves[d]) {
			r.Free += s.Size
		}
	}
	for _, k := range h.storage.Kept {
		var gain int64
		for _, file := range k.Files {
			if s, there := h.content[file.Digest]; there && kept[file.Digest] && !stays[file.Digest] {
				stays[file.Digest] = true // counted once
				gain += s.Size
			}
		}
		if gain > 0 {
			r.GiveUp(k.Model, k.Version, gain)
		}
	}
	return r
}

// sound returns what a device says of its content without what cannot be.
func sound(s atelier.Storage) atelier.Storage {
	const most = 1 << 50 // bytes, of which sums stay far from overflow
	bound := func(n int64) int64 { return min(max(n, 0), most) }
	s.Reserve, s.Rate = bound(s.Reserve), bound(s.Rate)
	s.Content = slices.Clone(s.Content)
	for i := range s.Content {
		s.Content[i].Size = bound(s.Content[i].Size)
	}
	return s
}
