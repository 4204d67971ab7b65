package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/enrol"
	"github.com/atelier-edge/atelier/hub/fleet"
	"github.com/atelier-edge/atelier/internal/durable"
)

// adminToken makes another admin token, for whoever holds the hub's machine.
func adminToken(ctx context.Context, c config) (err error) {
	b, err := open(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	web, err := net.ResolveTCPAddr("tcp", c.listen)
	if err != nil {
		return addressTaken("listen", c.listen, err)
	}
	ctx = access.WithPrincipal(ctx, access.Principal{Kind: access.System})
	name := "admin-" + time.Now().UTC().Format("20060102-150405")
	_, secret, err := b.access.CreateToken(ctx, access.AccessToken{Meta: atelier.Meta{Name: name}, Role: access.Admin})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.out, "The token %q lets its holder do everything, and is shown only now. Log in with:\n\n"+
		"  atelier login https://%s --fingerprint %s --token %s\n", name, c.at(web, c.advertise), b.authority.Fingerprint(), secret)
	return err
}

// brokerFiles writes what another MQTT broker needs to know of this hub.
func brokerFiles(ctx context.Context, c config) (err error) {
	b, err := open(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	cert, key, err := b.authority.ServerPEM(c.names()...)
	if err != nil {
		return err
	}
	devices, err := enrol.New(enrol.Config{Store: b.store, Access: b.access, Authority: b.authority, MQTT: []string{c.broker}})
	if err != nil {
		return err
	}
	ctx = access.WithPrincipal(ctx, access.Principal{Kind: access.System})
	revoked, err := devices.RevocationList(ctx)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.brokerOut, 0o755); err != nil {
		return atelier.Errorf(atelier.Invalid, "make the directory: %w", err)
	}
	for _, f := range []struct {
		name string
		data []byte
		mode fs.FileMode
	}{
		{"ca.pem", b.authority.CAPEM(), 0o644}, {"server.pem", cert, 0o644}, {"server.key", key, 0o600}, {"revoked.pem", revoked, 0o644},
	} {
		path := filepath.Join(c.brokerOut, f.name)
		if err := durable.WriteFile(durable.OS{}, path, f.data, f.mode); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(c.out, path); err != nil {
			return err
		}
	}
	return nil
}

// newEpoch lets devices accept the desired states of a hub that was restored
// from a backup, whose generations they have seen before.
func newEpoch(ctx context.Context, c config) (err error) {
	b, err := open(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	epoch, err := fleet.NewEpoch(ctx, b.store)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.out, "This hub is at epoch %d from its next start.\n", epoch)
	return err
}
