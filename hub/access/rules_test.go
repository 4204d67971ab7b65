package access_test

import (
	"context"
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"strconv"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/store"
)

// verbs reads the list of verbs out of its source, with their comments.
func verbs(t *testing.T) map[access.Verb]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "verb.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	found := map[access.Verb]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 {
			return true
		}
		if lit, ok := spec.Values[0].(*ast.BasicLit); ok {
			text, err := strconv.Unquote(lit.Value)
			if err != nil {
				t.Fatal(err)
			}
			if _, twice := found[access.Verb(text)]; twice {
				t.Errorf("%s stands twice", text)
			}
			found[access.Verb(text)] = strings.TrimSpace(spec.Comment.Text())
		}
		return true
	})
	if len(found) < 40 {
		t.Fatalf("found only %d verbs", len(found))
	}
	return found
}

func TestEveryVerbIsDocumented(t *testing.T) {
	t.Parallel()
	form := regexp.MustCompile(`^[a-z]+(-[a-z]+)*\.[a-z]+(-[a-z]+)*$`)
	for v, doc := range verbs(t) {
		if !form.MatchString(string(v)) {
			t.Errorf("%s is not of the form noun.verb", v)
		}
		if doc == "" {
			t.Errorf("%s has no comment", v)
		}
	}
}

// The verbs that each kind of caller may do. They are written out, and not
// derived as the rules derive them, so that a new verb is a decision twice.
var (
	readVerbs = set(`signing-key.list workspace.list workspace.show blob.show blob.download model.list model.show model.download
		environment.list environment.show image.list image.show image.download package.list package.show package.download base.list base.show runtime.list runtime.show token.list join-token.list device.list device.show deployment.list deployment.show
		endpoint.list endpoint.show data.list message.list twin.show telemetry.query event.watch audit.show hub.show`)
	deviceVerbs    = set(`device.connect device.renew state.report content.pull content.push telemetry.write data.write message.write`)
	builderVerbs   = set(`hub.show workspace.list environment.list environment.show environment.build environment.hold blob.upload blob.show`)
	sharedVerbs    = set(`hub.show workspace.list runtime.list runtime.show`)
	unauditedVerbs = set(`state.report content.pull content.push telemetry.write data.write message.write environment.hold image.upload`)
)

func set(words string) map[access.Verb]bool {
	m := map[access.Verb]bool{}
	for _, w := range strings.Fields(words) {
		m[access.Verb(w)] = true
	}
	return m
}

func TestRules(t *testing.T) {
	t.Parallel()
	const own, other = "workspace-own", "workspace-other"
	hub, here, there := access.Object{}, access.Object{Workspace: own, Kind: "device", ID: "d"}, access.Object{Workspace: other, Kind: "device", ID: "d"}
	neighbour := access.Object{Workspace: own, Kind: "device", ID: "e"}
	ofDevices := func(v access.Verb) bool { return deviceVerbs[v] || v == access.DeviceEnrol }
	yes := func(ok bool) atelier.Code {
		if ok {
			return ""
		}
		return atelier.Forbidden
	}
	s := newStore(t)
	a := access.New(s, nil)
	last := map[string]store.AuditEntry{} // by workspace
	for _, c := range []struct {
		name string
		p    access.Principal
		o    access.Object
		want func(access.Verb) atelier.Code
	}{
		{"the hub", access.Principal{Kind: access.System}, hub, func(access.Verb) atelier.Code { return "" }},
		{"nobody", access.Principal{}, here, func(access.Verb) atelier.Code { return atelier.Unauthenticated }},
		{"an anonymous caller", access.Principal{Kind: access.Anonymous}, hub, func(access.Verb) atelier.Code { return atelier.Unauthenticated }},
		{"an unknown kind", access.Principal{Kind: "robot", Role: access.Admin}, here, func(access.Verb) atelier.Code { return atelier.Unauthenticated }},
		{"a token without a role", user("", ""), here, func(access.Verb) atelier.Code { return atelier.Forbidden }},
		{"an admin", user(access.Admin, ""), hub, func(v access.Verb) atelier.Code { return yes(!ofDevices(v)) }},
		{"an admin", user(access.Admin, ""), there, func(v access.Verb) atelier.Code { return yes(!ofDevices(v)) }},
		{"a viewer", user(access.Viewer, ""), there, func(v access.Verb) atelier.Code { return yes(readVerbs[v]) }},
		{"a builder", user(access.Builder, ""), there, func(v access.Verb) atelier.Code { return yes(builderVerbs[v]) }},
		{"a bound builder at home", user(access.Builder, own), here, func(v access.Verb) atelier.Code { return yes(builderVerbs[v]) }},
		{"a bound builder elsewhere", user(access.Builder, own), there, func(access.Verb) atelier.Code { return atelier.NotFound }},
		{"a bound builder on the hub", user(access.Builder, own), hub, func(v access.Verb) atelier.Code { return yes(builderVerbs[v] && sharedVerbs[v]) }},
		{"a bound admin at home", user(access.Admin, own), here, func(v access.Verb) atelier.Code { return yes(!ofDevices(v)) }},
		{"a bound admin elsewhere", user(access.Admin, own), there, func(access.Verb) atelier.Code { return atelier.NotFound }},
		{"a bound admin on the hub", user(access.Admin, own), hub, func(v access.Verb) atelier.Code { return yes(sharedVerbs[v]) }},
		{"a bound viewer at home", user(access.Viewer, own), here, func(v access.Verb) atelier.Code { return yes(readVerbs[v]) }},
		{"a bound viewer elsewhere", user(access.Viewer, own), there, func(access.Verb) atelier.Code { return atelier.NotFound }},
		{"a bound viewer on the hub", user(access.Viewer, own), hub, func(v access.Verb) atelier.Code { return yes(sharedVerbs[v]) }},
		{"a device for itself", device("d", own), here, func(v access.Verb) atelier.Code { return yes(deviceVerbs[v]) }},
		{"a device for its neighbour", device("d", own), neighbour, func(access.Verb) atelier.Code { return atelier.Forbidden }},
		{"a device elsewhere", device("d", own), there, func(access.Verb) atelier.Code { return atelier.Forbidden }},
		{"a device on the hub", device("d", own), hub, func(access.Verb) atelier.Code { return atelier.Forbidden }},
		{"a device without an id", device("", own), access.Object{Workspace: own}, func(access.Verb) atelier.Code { return atelier.Forbidden }},
		{"a device without a workspace", device("d", ""), access.Object{ID: "d"}, func(access.Verb) atelier.Code { return atelier.Forbidden }},
		{"a joiner", joiner(own), here, func(v access.Verb) atelier.Code { return yes(v == access.DeviceEnrol) }},
		{"a joiner elsewhere", joiner(own), there, func(access.Verb) atelier.Code { return atelier.Forbidden }},
		{"a joiner without a workspace", joiner(""), hub, func(access.Verb) atelier.Code { return atelier.Forbidden }},
	} {
		for v := range verbs(t) {
			before := last[c.o.Workspace]
			err := a.Authorize(access.WithPrincipal(t.Context(), c.p), v, c.o)
			if got, want := atelier.CodeOf(err), c.want(v); got != want {
				t.Errorf("%s, %s on %+v: %q (%v), want %q", c.name, v, c.o, got, err, want)
			}
			after := lastAudit(t, s, c.o.Workspace, before)
			last[c.o.Workspace] = after
			audited := after.Sequence != before.Sequence
			if want := err != nil || !readVerbs[v] && !unauditedVerbs[v]; audited != want {
				t.Errorf("%s, %s (%v): audited is %v, want %v", c.name, v, err, audited, want)
			}
			if audited && (after.Allowed != (err == nil) || after.Verb != string(v) || after.Object != c.o.ID || after.Why == "") {
				t.Errorf("%s, %s: the trail says %+v", c.name, v, after)
			}
		}
	}
}

func user(role, workspace string) access.Principal {
	return access.Principal{Kind: access.User, ID: "t", Name: "tester", Role: role, Workspace: workspace}
}

func device(id, workspace string) access.Principal {
	return access.Principal{Kind: access.Device, ID: id, Workspace: workspace}
}

func joiner(workspace string) access.Principal {
	return access.Principal{Kind: access.Joiner, ID: "j", Workspace: workspace}
}

// lastAudit returns the workspace's newest entry, which is last or a later one.
func lastAudit(t *testing.T, s store.Store, workspace string, last store.AuditEntry) store.AuditEntry {
	t.Helper()
	err := s.View(t.Context(), func(tx store.Tx) error {
		for {
			es, err := tx.AuditTrail(workspace, last.Sequence, 1000)
			if err != nil || len(es) == 0 {
				return err
			}
			last = es[len(es)-1]
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return last
}

func TestAuditTellsWhoAndWhy(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	ctx, cancel := context.WithCancel(access.WithRequest(access.WithPrincipal(t.Context(), user(access.Viewer, "")), "request-7"))
	cancel() // the caller hangs up: what it tried is recorded all the same
	err := access.New(s, clock).Authorize(ctx, access.ModelDelete, access.Object{Workspace: "w", Kind: "model", ID: "digits"})
	if atelier.CodeOf(err) != atelier.Forbidden {
		t.Errorf("Authorize = %v, want forbidden", err)
	}
	want := store.AuditEntry{
		Sequence: 1, Time: clock(), Workspace: "w", Actor: "token:tester", Verb: "model.delete", Kind: "model", Object: "digits",
		Why: "a viewer may only read", Request: "request-7",
	}
	if got := lastAudit(t, s, "w", store.AuditEntry{}); got != want {
		t.Errorf("the trail says %+v\nwant %+v", got, want)
	}
}

// What cannot be audited does not happen, and a refusal stays one.
func TestNoAuditNoDeed(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	a := access.New(s, nil)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	err := a.Authorize(access.WithPrincipal(t.Context(), user(access.Admin, "")), access.ModelDelete, access.Object{Workspace: "w"})
	if atelier.CodeOf(err) != atelier.Unavailable {
		t.Errorf("an admin, without an audit trail: %v", err)
	}
	err = a.Authorize(access.WithPrincipal(t.Context(), user(access.Viewer, "")), access.ModelDelete, access.Object{Workspace: "w"})
	if atelier.CodeOf(err) != atelier.Forbidden {
		t.Errorf("a viewer, without an audit trail: %v", err)
	}
}
