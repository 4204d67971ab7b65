package atelier

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
)

// TransferPolicy bounds the transfer of content to devices. nil, and the zero value,
// bound nothing. Control messages and telemetry are no content.
type TransferPolicy struct {
	// Bandwidth is a number of bytes a second, headers of frames included, those of
	// MQTT, TLS and TCP not; 0 is no limit.
	Bandwidth int64 `json:"bandwidth_bytes,omitempty"`
	// Window is the time of day at which content may be transferred; nil is always.
	Window *Window `json:"window,omitempty"`
}

// Limit returns the bytes a second that p allows, 0 for no limit.
func (p *TransferPolicy) Limit() int64 {
	if p == nil {
		return 0
	}
	return p.Bandwidth
}

// Opens returns when p next allows a transfer: t itself where it does so now.
func (p *TransferPolicy) Opens(t time.Time) time.Time {
	if p == nil || p.Window == nil {
		return t
	}
	return p.Window.Opens(t)
}

// TransferChange says what to change of a TransferPolicy; nil leaves a field as it is.
type TransferChange struct {
	Bandwidth *int64  `json:"bandwidth_bytes,omitempty"` // 0 for no limit
	Window    *string `json:"window,omitempty"`          // as ParseWindow reads it, "" for always
}

// Apply returns p with the change; nil where nothing is bounded then.
func (c TransferChange) Apply(p *TransferPolicy) (*TransferPolicy, error) {
	var next TransferPolicy
	if p != nil {
		next = *p
	}
	if c.Bandwidth != nil {
		if *c.Bandwidth < 0 {
			return nil, Errorf(Invalid, "a bandwidth of %d bytes a second is not possible", *c.Bandwidth).WithField("transfer.bandwidth_bytes").
				WithRemedy("Give a number of bytes a second, or 0 for no limit.")
		}
		next.Bandwidth = *c.Bandwidth
	}
	if c.Window != nil {
		next.Window = nil
		if *c.Window != "" {
			w, err := ParseWindow(*c.Window)
			if err != nil {
				return nil, err
			}
			next.Window = &w
		}
	}
	if next == (TransferPolicy{}) {
		return nil, nil
	}
	return &next, nil
}

// Window is a part of each day, such as 22:00 to 06:00, in a time zone. It begins
// with From and ends before To, on the next day where To is not after From.
type Window struct {
	From, To int    // minutes since midnight
	Zone     string // a name of the IANA time zone database, "UTC" or "Europe/Berlin"
}

const day = 24 * 60 // minutes

// ParseWindow reads "22:00-06:00" or "22:00-06:00 Europe/Berlin"; the zone is UTC
// where none is given.
func ParseWindow(s string) (Window, error) {
	w, err := splitWindow(s)
	if err == nil {
		_, err = location(w.Zone)
	}
	if err != nil {
		return w, Errorf(Invalid, "%.80q is no time window: %w", s, err).WithField("transfer.window").
			WithRemedy("Write it like '22:00-06:00' or '22:00-06:00 Europe/Berlin'.")
	}
	return w, nil
}

// splitWindow does not look whether there is such a zone: whoever only shows a
// window need not know them all.
func splitWindow(s string) (Window, error) {
	hours, zone, _ := strings.Cut(strings.TrimSpace(s), " ")
	w := Window{Zone: strings.TrimSpace(zone)}
	if w.Zone == "" {
		w.Zone = "UTC"
	}
	from, to, ok := strings.Cut(hours, "-")
	if !ok {
		return w, fmt.Errorf("it has no two times with a '-' between them")
	}
	var err error
	if w.From, err = minutes(from); err != nil {
		return w, err
	}
	if w.To, err = minutes(to); err != nil {
		return w, err
	}
	if w.From == day || w.From == w.To {
		return w, fmt.Errorf("it does not begin and end at different times of the day")
	}
	return w, nil
}

// minutes reads a time of the day, "6:30" or "06:30", as minutes since midnight.
func minutes(s string) (int, error) {
	hours, minutes, _ := strings.Cut(s, ":")
	h, errHours := strconv.ParseUint(hours, 10, 8)
	m, errMinutes := strconv.ParseUint(minutes, 10, 8)
	if errHours != nil || errMinutes != nil || len(minutes) != 2 || m > 59 || h*60+m > day {
		return 0, fmt.Errorf("%.20q is no time of the day", s)
	}
	return int(h*60 + m), nil
}

// String writes what ParseWindow reads, the zone included.
func (w Window) String() string {
	return fmt.Sprintf("%02d:%02d-%02d:%02d %s", w.From/60, w.From%60, w.To/60, w.To%60, w.Zone)
}

// MarshalText writes String.
func (w Window) MarshalText() ([]byte, error) { return []byte(w.String()), nil }

// UnmarshalText reads what MarshalText writes, also with a zone that this program
// does not know.
func (w *Window) UnmarshalText(b []byte) (err error) {
	*w, err = splitWindow(string(b))
	return err
}

// Contains reports whether t is within the window.
func (w Window) Contains(t time.Time) bool {
	t = t.In(w.location())
	now := t.Hour()*60 + t.Minute()
	if w.From < w.To {
		return w.From <= now && now < w.To
	}
	return now >= w.From || now < w.To
}

// Opens returns when the window next begins: t itself where that is within it.
func (w Window) Opens(t time.Time) time.Time {
	if w.Contains(t) {
		return t
	}
	local := t.In(w.location())
	for after := range 3 {
		opens := time.Date(local.Year(), local.Month(), local.Day()+after, w.From/60, w.From%60, 0, 0, local.Location())
		if opens.After(t) {
			return opens
		}
	}
	return t.Add(24 * time.Hour) // no clock goes so
}

func (w Window) location() *time.Location {
	l, err := location(w.Zone)
	if err != nil {
		return time.UTC // checked when it was set; this system forgot it since
	}
	return l
}

// zones remembers time zones: to find one may mean to read a file.
var zones sync.Map

func location(name string) (*time.Location, error) {
	if l, ok := zones.Load(name); ok {
		return l.(*time.Location), nil
	}
	if name == "Local" {
		return nil, fmt.Errorf("the zone must be named")
	}
	l, err := time.LoadLocation(name)
	if err != nil {
		return nil, fmt.Errorf("there is no time zone %.40q", name)
	}
	zones.Store(name, l)
	return l, nil
}
