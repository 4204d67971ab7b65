package enrol

import (
	"context"
	"fmt"
	"maps"
	"strings"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
)

// defaultTarget is the kind of target that devices run modules on.
const defaultTarget = "process"

// Join exchanges a join token and a request for a certificate for an identity.
// The device, its certificate and the token's use are one transaction. A device
// gets the token's labels, and its own under keys that the token does not use: what the
// operator said of the devices that join with a token cannot be contradicted by them.
//
// Unauthenticated where the token is unknown, Forbidden where it expired or is
// used up or the key's device was revoked, Exists where the name is taken.
func (s *Service) Join(ctx context.Context, req wire.EnrolRequest) (wire.Enrolment, error) {
	var out wire.Enrolment
	csr, key, err := trust.ParseCSR(req.CSR)
	if err != nil {
		return out, err
	}
	if req.Name != "" {
		if err := atelier.CheckName("device", req.Name); err != nil {
			return out, err
		}
	}
	if err := req.Labels.Check(); err != nil {
		return out, err
	}
	var workspace string
	err = s.store.View(ctx, func(tx store.Tx) error {
		t, ws, err := s.tokenOf(tx, req.Token)
		workspace = ws
		ctx = access.WithPrincipal(ctx, access.Principal{Kind: access.Joiner, ID: t.ID, Name: t.Name, Workspace: ws})
		return err
	})
	if err != nil {
		return out, err
	}
	if err := s.access.Authorize(ctx, access.DeviceEnrol, access.Object{Workspace: workspace, Kind: catalog.Devices.Kind}); err != nil {
		return out, err
	}
	if out.Root, out.Delegation, err = s.authority.Pin(workspace); err != nil {
		return out, err
	}
	err = s.store.Update(ctx, access.By(ctx), func(tx store.Tx) error {
		t, ws, err := s.tokenOf(tx, req.Token)
		if err != nil {
			return err
		}
		w, err := catalog.Workspaces.Get(tx, "", ws)
		if err != nil {
			return err
		}
		j := joining{Service: s, tx: tx, workspace: ws, key: key, req: req}
		d, cert, err := j.admit(t, csr.Subject.CommonName)
		if err != nil {
			return err
		}
		out.Device, out.Name, out.Shard = d.ID, d.Name, d.Shard
		out.Workspace, out.WorkspaceName = w.ID, w.Name
		out.Certificate = string(cert.PEM)
		return nil
	})
	out.CA, out.MQTT = string(s.authority.CAPEM()), s.mqtt
	return out, err
}

// joining is one device on its way in, within one transaction.
type joining struct {
	*Service
	tx        store.Tx
	workspace string
	key       trust.PublicKey
	req       wire.EnrolRequest
}

// admit returns the device that the key has joined as, or adds it.
func (j *joining) admit(t atelier.JoinToken, hostname string) (atelier.Device, issued, error) {
	holders, err := j.tx.Referrers(catalog.RelKey, j.key.ID(), maxHolders)
	if err != nil {
		return atelier.Device{}, issued{}, err
	}
	for _, r := range holders {
		if r.Workspace == j.workspace {
			return j.again(r.ID)
		}
	}
	if len(holders) == maxHolders {
		return atelier.Device{}, issued{}, atelier.Errorf(atelier.Conflict, "%d devices have this key already", maxHolders).
			WithRemedy("Let the device make a new key.")
	}
	if t.Used >= t.Uses {
		return atelier.Device{}, issued{}, atelier.Errorf(atelier.Forbidden, "the join token is used up: %d of %d devices have joined with it", t.Used, t.Uses).
			WithField("token").WithRemedy("Make a new one with 'atelier device token'.")
	}
	t.Used++
	if _, err := catalog.JoinTokens.Update(j.tx, j.workspace, t); err != nil {
		return atelier.Device{}, issued{}, err
	}
	labels, err := j.labels(t)
	if err != nil {
		return atelier.Device{}, issued{}, err
	}
	name, err := j.name(hostname)
	if err != nil {
		return atelier.Device{}, issued{}, err
	}
	d := atelier.Device{
		Meta: atelier.Meta{ID: atelier.NewID(), Name: name}, Labels: labels, Target: defaultTarget,
		Fingerprint: j.key.ID(), PublicKey: j.key.SPKI(), Shard: j.shard,
	}
	cert, err := j.issue(j.tx, j.workspace, d.ID, j.req.CSR)
	if err != nil {
		return d, cert, err
	}
	d.Certificate = cert.Info
	d, err = catalog.Devices.Insert(j.tx, j.workspace, "", d)
	return d, cert, err
}

// again answers a device that asks once more, since the answer was lost. It
// has proved its key with the request, as it does to renew.
func (j *joining) again(id string) (atelier.Device, issued, error) {
	d, err := catalog.Devices.Get(j.tx, j.workspace, id)
	if err != nil {
		return d, issued{}, err
	}
	if d.Revoked != nil {
		return d, issued{}, errRevoked()
	}
	cert, err := j.issue(j.tx, j.workspace, id, j.req.CSR)
	if err != nil {
		return d, cert, err
	}
	d.Certificate = cert.Info
	d, err = catalog.Devices.Update(j.tx, j.workspace, d)
	return d, cert, err
}

func (j *joining) labels(t atelier.JoinToken) (atelier.Labels, error) {
	labels := atelier.Labels{}
	maps.Copy(labels, j.req.Labels)
	for k, v := range t.Labels {
		if own, ok := labels[k]; ok && own != v {
			return nil, atelier.Errorf(atelier.Forbidden, "the device asks for label %s=%s, the join token says %s=%s", k, own, k, v).
				WithField("labels").WithRemedy("Leave the label out, or use a join token without it.")
		}
		labels[k] = v
	}
	return labels, labels.Check()
}

// name returns the name that was asked for, or a free one made from hostname.
func (j *joining) name(hostname string) (string, error) {
	taken := func(name string) (bool, error) {
		_, err := catalog.Devices.Find(j.tx, j.workspace, "", name)
		if atelier.CodeOf(err) == atelier.NotFound {
			return false, nil
		}
		return err == nil, err
	}
	if asked := j.req.Name; asked != "" {
		if is, err := taken(asked); err != nil || !is {
			return asked, err
		}
		return "", atelier.Errorf(atelier.Exists, "there is a device %q in this workspace already", asked).
			WithField("name").WithRemedy("Choose another name, or delete that device first.")
	}
	base := slug(hostname)
	for n := 1; n <= 1000; n++ {
		name := base
		if n > 1 {
			name = fmt.Sprintf("%s-%d", base, n)
		}
		if is, err := taken(name); err != nil || !is {
			return name, err
		}
	}
	return "", atelier.Errorf(atelier.Exists, "1000 devices are called %q already", base).
		WithField("name").WithRemedy("Give the device a name of its own.")
}

// slug makes a name of what a host calls itself, with room for a number.
func slug(hostname string) string {
	const most = 56
	host, _, _ := strings.Cut(strings.ToLower(hostname), ".")
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '_' {
			return r
		}
		return '-'
	}, host)
	name = strings.Trim(name[:min(len(name), most)], "-_")
	if atelier.CheckName("device", name) != nil {
		return "device"
	}
	return name
}

func errRevoked() error {
	return atelier.Errorf(atelier.Forbidden, "the device was revoked").
		WithRemedy("Join it again with a new key and a new join token if it should come back.")
}
