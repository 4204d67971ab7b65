package rest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
)

// watcher reads a watch.
type watcher struct {
	t      testing.TB
	events chan atelier.Event
	beats  chan struct{}
	ended  chan error
	stop   context.CancelFunc
}

func (h *hub) watch(token, path string, headers ...string) *watcher {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 20*time.Second)
	h.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "GET", h.url+path, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	for _, line := range headers {
		name, value, _ := strings.Cut(line, ": ")
		req.Header.Set(name, value)
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		h.t.Fatal(err)
	}
	if res.StatusCode != 200 || res.Header.Get("Content-Type") != sseType {
		b, _ := io.ReadAll(res.Body)
		h.t.Fatalf("%s %s: %s", res.Status, res.Header.Get("Content-Type"), b)
	}
	w := &watcher{h.t, make(chan atelier.Event, 100), make(chan struct{}, 1), make(chan error, 1), cancel}
	go func() {
		defer res.Body.Close()
		var id string
		lines := bufio.NewScanner(res.Body)
		for lines.Scan() {
			line := lines.Text()
			if strings.HasPrefix(line, ":") {
				select {
				case w.beats <- struct{}{}:
				default:
				}
			}
			if v, ok := strings.CutPrefix(line, "id: "); ok {
				id = v
			}
			if v, ok := strings.CutPrefix(line, "data: "); ok {
				var e atelier.Event
				if err := json.Unmarshal([]byte(v), &e); err != nil || strconv.FormatInt(e.Sequence, 10) != id {
					w.ended <- fmt.Errorf("event %s with id %s: %v", v, id, err)
					return
				}
				w.events <- e
			}
		}
		w.ended <- lines.Err()
	}()
	return w
}

// next returns the next event, which must be of that kind, name and change.
func (w *watcher) next(kind, name string, change atelier.Change) atelier.Event {
	w.t.Helper()
	select {
	case e := <-w.events:
		if e.Kind != kind || e.Name != name || e.Change != change {
			w.t.Fatalf("got %s %s %s, want %s %s %s", e.Kind, e.Name, e.Change, kind, name, change)
		}
		return e
	case err := <-w.ended:
		w.t.Fatalf("the watch ended: %v", err)
	case <-time.After(10 * time.Second):
		w.t.Fatalf("no event came, want %s %s %s", kind, name, change)
	}
	return atelier.Event{}
}

func TestWatch(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.workspace("lab")
	h.workspace("other")
	list := h.do(h.admin, "GET", "/v1/workspaces/lab/models", nil)
	since := list.header.Get("X-Atelier-Sequence")
	h.register("lab", "before", 1) // between the list and the watch
	w := h.watch(h.admin, "/v1/workspaces/lab/models?watch=true&after="+since)
	w.next("model", "before", atelier.Created)
	w.next("model", "before", atelier.Updated)
	h.register("other", "elsewhere", 1)
	h.register("lab", "digits", 2)
	e := w.next("model", "digits", atelier.Created)
	if len(e.Resource) == 0 || e.Actor != "token:admin" || e.Request == "" {
		t.Errorf("got %+v", e)
	}
	last := w.next("model", "digits", atelier.Updated).Sequence
	w.stop()

	h.do(h.admin, "DELETE", "/v1/workspaces/lab/models/digits", nil).into(t, 204, nil)
	w = h.watch(h.admin, "/v1/workspaces/lab/models?watch=true", "Last-Event-ID: "+strconv.FormatInt(last, 10))
	w.next("model", "digits", atelier.Deleted)

	// Only what is new, and only one resource.
	one := h.watch(h.admin, "/v1/workspaces/lab/models/before", "Accept: text/event-stream")
	version := h.watch(h.admin, "/v1/workspaces/lab/models/before/versions/1?watch=true")
	h.register("lab", "noise", 3)
	h.do(h.admin, "PATCH", "/v1/workspaces/lab/models/before", map[string]any{"description": "x"}, "If-Match: *").into(t, 200, nil)
	one.next("model", "before", atelier.Updated)
	h.do(h.admin, "PATCH", "/v1/workspaces/lab/models/before/versions/1", map[string]any{"description": "x"}, "If-Match: *").into(t, 200, nil)
	version.next("version", "1", atelier.Updated)

	h.do(h.admin, "GET", "/v1/workspaces/lab/models?watch=true&after=x", nil).fails(t, atelier.Invalid)
	h.do(h.admin, "GET", "/v1/workspaces/lab/models/none?watch=true", nil).fails(t, atelier.NotFound)
}

// TestWatchBound lets a caller that is bound to a workspace see that one only,
// also where workspaces themselves are watched.
func TestWatchBound(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.workspace("mine")
	bound := h.token("bound", access.Viewer, "mine")
	w := h.watch(bound, "/v1/workspaces?watch=true")
	h.workspace("theirs")
	h.do(h.admin, "PATCH", "/v1/workspaces/mine", map[string]any{"description": "x"}, "If-Match: *").into(t, 200, nil)
	w.next("workspace", "mine", atelier.Updated)
}

// TestWatchEnds ends a watch with its token, and with the hub.
func TestWatchEnds(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.workspace("lab")
	secret := h.token("ci", access.Viewer, "")
	w := h.watch(secret, "/v1/workspaces/lab/events", "Accept: text/event-stream")
	select {
	case <-w.beats:
	case <-time.After(10 * time.Second):
		t.Fatal("no sign of life")
	}
	h.do(h.admin, "DELETE", "/v1/tokens/ci", nil).into(t, 204, nil)
	select {
	case <-w.ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the watch outlives its token")
	}
}

func TestEvents(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.workspace("lab")
	v := h.register("lab", "digits", 1)
	var all []atelier.Event
	path := "/v1/workspaces/lab/events?limit=2"
	for next := path; next != ""; {
		var page listBody[atelier.Event]
		h.do(h.admin, "GET", next, nil).into(t, 200, &page)
		all = append(all, page.Items...)
		next = ""
		if page.Next != "" {
			next = path + "&cursor=" + page.Next
		}
	}
	var told []string
	for _, e := range all {
		told = append(told, e.Kind+" "+string(e.Change))
	}
	if got := strings.Join(told, ", "); got != "blob created, model created, version created, model updated" {
		t.Errorf("got %s", got)
	}
	var some listBody[atelier.Event]
	h.do(h.admin, "GET", "/v1/workspaces/lab/events?kind=version&id="+v.ID, nil).into(t, 200, &some)
	if len(some.Items) != 1 || some.Items[0].ID != v.ID {
		t.Errorf("got %+v", some)
	}
	h.do(h.admin, "GET", fmt.Sprintf("/v1/workspaces/lab/events?after=%d", some.Items[0].Sequence), nil).into(t, 200, &some)
	if len(some.Items) != 1 || some.Items[0].Kind != "model" {
		t.Errorf("got %+v", some)
	}
	h.do(h.admin, "GET", "/v1/events?kind=workspace", nil).into(t, 200, &some)
	if len(some.Items) != 1 || some.Items[0].Name != "lab" {
		t.Errorf("got %+v", some)
	}
}
