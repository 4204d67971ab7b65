package runner

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/targets"
)

// checkImage finds out what can never work here of a module that runs an image.
func (i *instance) checkImage() error {
	img := i.module.Image
	if i.module.Target == processKind {
		return &refusal{atelier.Because(atelier.ReasonUnsupportedFeature, fmt.Sprintf("a target of kind %q runs no images", i.module.Target)), true}
	}
	if err := img.Container.Check(); err != nil {
		return &refusal{atelier.BecauseOf(atelier.ReasonUnsupportedFeature, err), true}
	}
	return nil
}

// processKind is the kind of target that runs plain processes.
const processKind = "process"

// verifyImage is asked before anything of an image is laid out, unpacked or run. Every part of
// it is in the content store by then, and is what its digest says.
func (i *instance) verifyImage() error {
	if i.runner.opts.VerifyImage == nil {
		return nil
	}
	if err := i.runner.opts.VerifyImage(i.module.Image); err != nil {
		var untrusted *trust.Error
		if !errors.As(err, &untrusted) {
			return err
		}
		return &refusal{why: trust.WhyOf(err)}
	}
	return nil
}

// imageFile is where a part of the module's image is laid out.
func (i *instance) imageFile(f atelier.File) string {
	return filepath.Join(i.dir(), filepath.FromSlash(f.Path))
}

// containerSpec says how the module's container is run.
func (i *instance) containerSpec() targets.Spec {
	m, img := &i.module, i.module.Image
	blob := func(f atelier.File) targets.Blob {
		return targets.Blob{Path: i.imageFile(f), Digest: f.Digest, Size: f.Size}
	}
	c := &targets.Container{
		Image:    targets.Image{Reference: img.Reference, Manifest: blob(img.Manifest), Config: blob(img.Config)},
		Settings: img.Container, OwnCommand: true,
	}
	for _, l := range img.Layers {
		c.Image.Layers = append(c.Image.Layers, blob(l.File))
	}
	return targets.Spec{
		ID: i.id, Dir: i.dir(), Socket: i.runner.socket(m.Rollout), Log: filepath.Join(i.dir(), logFile), LogLimit: logLimit,
		Env:    []string{"ATELIER_DEPLOYMENT=" + m.Name},
		Limits: m.Limits, Container: c,
	}
}

// probeContainer asks a container whether it is well, as its deployment says.
func (i *instance) probeContainer(ctx context.Context) error {
	set := &i.module.Image.Container
	kind := ""
	switch {
	case set.Probe != nil:
		kind = set.Probe.Kind
	case set.Port != 0:
		kind = atelier.ProbeTCP
	}
	socket := i.runner.socket(i.module.Rollout)
	switch kind {
	case atelier.ProbeHTTP:
		return probeHTTP(ctx, socket, set.Probe.Path)
	case atelier.ProbeTCP:
		return probeTCP(ctx, socket)
	case atelier.ProbeExec:
		p, ok := i.target.(targets.Prober)
		if !ok {
			return fmt.Errorf("a target of kind %q cannot run a probe's command", i.module.Target)
		}
		return p.Probe(ctx, i.id, set.Probe.Command)
	}
	s, err := i.target.Status(ctx, i.id)
	if err == nil && s.Phase != targets.Running {
		err = errors.New("it does not run")
	}
	return err
}

// probeHTTP asks for a path on the module's socket.
func probeHTTP(ctx context.Context, socket, path string) error {
	client := http.Client{
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", socket)
			},
		},
		// Where it leads to is not asked: it may be anywhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost"+path, nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	_ = res.Body.Close() // its status is what counts
	if res.StatusCode < 200 || res.StatusCode > 399 {
		return fmt.Errorf("it answers %s to its health probe GET %s", res.Status, path)
	}
	return nil
}

// openFor is how long a connection must stand for the port to count as open: what passes it on
// takes every connection, and ends it at once where nobody listens.
const openFor = 100 * time.Millisecond

// probeTCP asks whether the module's port takes connections.
func probeTCP(ctx context.Context, socket string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // nothing was said
	if err := conn.SetReadDeadline(time.Now().Add(openFor)); err != nil {
		return err
	}
	var timeout net.Error
	if _, err := conn.Read(make([]byte, 1)); err != nil && (!errors.As(err, &timeout) || !timeout.Timeout()) {
		return errors.New("its port takes no connections yet")
	}
	return nil
}
