// Package agenttest has real stand-ins for what an agent meets: an authority
// that signs as a hub does, and a target that runs instances in the test's own
// process, with faults to order. Only tests import it.
package agenttest

import (
	"encoding/json"
	"sync"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
)

// Authority signs for one workspace, as a hub does.
type Authority struct {
	Workspace string

	mu         sync.Mutex
	root       trust.Signer
	state      trust.Signer
	images     []trust.PublicKey
	rootRaw    []byte
	delegation []byte
	version    int
}

// NewAuthority makes a root and a delegation for a new workspace.
func NewAuthority(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{Workspace: atelier.NewID(), root: newSigner(t)}
	raw, err := trust.SignRoot(trust.Root{
		Version: 1, Issued: time.Now(), Expires: time.Now().Add(time.Hour),
		Roles: map[string]trust.Role{trust.RoleRoot: {Threshold: 1, Keys: []trust.PublicKey{a.root.Public()}}},
	}, a.root)
	if err != nil {
		t.Fatal(err)
	}
	a.rootRaw = raw
	a.Rotate(t)
	return a
}

func newSigner(t testing.TB) trust.Signer {
	t.Helper()
	key, err := trust.NewHubKey()
	if err != nil {
		t.Fatal(err)
	}
	s, err := trust.NewSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Rotate replaces the workspace's state key and returns the new delegation.
func (a *Authority) Rotate(t testing.TB) []byte {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.state = newSigner(t)
	return a.delegate(t)
}

// DelegateImages lets the workspace's images be signed by these keys, and returns the new
// delegation.
func (a *Authority) DelegateImages(t testing.TB, keys ...trust.PublicKey) []byte {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.images = keys
	return a.delegate(t)
}

func (a *Authority) delegate(t testing.TB) []byte {
	t.Helper()
	a.version++
	raw, err := trust.SignDelegation(trust.Delegation{
		Role: trust.RoleState, Workspace: a.Workspace, Version: a.version,
		Issued: time.Now(), Keys: []trust.PublicKey{a.state.Public()}, Images: a.images,
	}, a.root)
	if err != nil {
		t.Fatal(err)
	}
	a.delegation = raw
	return raw
}

// Root returns the root's envelope.
func (a *Authority) Root() []byte { return a.rootRaw }

// Delegation returns the newest delegation's envelope.
func (a *Authority) Delegation() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.delegation
}

// Sign returns the envelope of v, signed by the workspace's state key.
func (a *Authority) Sign(t testing.TB, payloadType string, v any) []byte {
	t.Helper()
	payload, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	raw, err := trust.Sign(payloadType, payload, a.state)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// Desired signs a desired state.
func (a *Authority) Desired(t testing.TB, d atelier.DesiredState) []byte {
	t.Helper()
	return a.Sign(t, wire.TypeDesired, d)
}

// Module returns a module named name whose model file is content, with a new rollout.
func Module(name string, content []byte) atelier.Module {
	file := atelier.File{Path: "model.onnx", Digest: atelier.DigestOf(content), Size: int64(len(content))}
	runtime := atelier.File{Path: "libonnxruntime.so", Digest: atelier.DigestOf([]byte("runtime")), Size: 7}
	return atelier.Module{
		Deployment: atelier.NewID(), Name: name, Rollout: atelier.NewID(), Target: "process",
		Package: file.Digest,
		Model: atelier.ModuleModel{
			Name: name, Version: 1, Digest: file.Digest,
			Variant: atelier.Variant{Kind: atelier.VariantONNX, Entry: file.Path, Files: []atelier.File{file}},
		},
		Runtime:  &atelier.ModuleRuntime{Name: atelier.RuntimeONNX, Version: "1.0", Entry: runtime.Path, Files: []atelier.File{runtime}},
		Endpoint: atelier.ModuleEndpoint{Name: name},
	}
}

// Next returns m with the next version and a new rollout.
func Next(m atelier.Module, content []byte) atelier.Module {
	n := Module(m.Name, content)
	n.Deployment, n.Endpoint, n.Model.Version = m.Deployment, m.Endpoint, m.Model.Version+1
	return n
}
