package agent

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strings"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/router"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/wire"
)

// newRouter makes the keeper of atelier-router.
func (a *agent) newRouter() *router.Supervisor {
	return router.New(router.Options{
		Program: filepath.Join(a.places.Programs, "atelier-router"), State: a.places.router(), Run: a.places.Run,
		Table:   a.routingTable,
		Publish: func(ctx context.Context, frame []byte) error { return a.link.Publish(ctx, wire.Messages, frame) },
		Config:  a.opts.ConfigPath, Changed: a.changed, Times: router.DefaultTimes, Log: a.log.With("part", "router"),
	})
}

// routingTable is what the router shall go by, false where no module has routes or a twin.
func (a *agent) routingTable() (t atelier.RoutingTable, wanted bool) {
	c := a.settings().Modules
	t = atelier.RoutingTable{Device: a.identity.Device, Listen: c.Listen, Queue: c.QueueBytes, Modules: []atelier.RoutedModule{}, Routes: []atelier.MessageRoute{}}
	desired := a.store.Desired()
	if desired == nil {
		return t, false
	}
	for i := range desired.Modules {
		wanted = wanted || len(desired.Modules[i].Routes) > 0 || desired.Modules[i].Twin != nil
	}
	if !wanted {
		return t, false
	}
	sockets := a.runner.Answering()
	for i := range desired.Modules {
		m := &desired.Modules[i]
		_, sum, err := a.modulePassword(m.Name)
		if err != nil {
			a.log.Error("a module cannot be given a password, and does not connect to the router", "module", m.Name, "error", err)
			continue
		}
		t.Modules = append(t.Modules, atelier.RoutedModule{Name: m.Name, Password: sum, Socket: sockets[m.Deployment], Model: m.Model.Name, Twin: m.Twin})
		for _, r := range m.Routes {
			if !slices.Contains(t.Routes, r) {
				t.Routes = append(t.Routes, r)
			}
		}
	}
	return t, true
}

// modulePassword returns the file with the password by which a module connects to the
// router, made where there is none, and the password's SHA-256 in hex.
func (a *agent) modulePassword(module string) (path, sum string, err error) {
	if err := atelier.CheckName("module", module); err != nil {
		return "", "", err // it becomes a path
	}
	dir := a.places.passwords()
	path = filepath.Join(dir, module)
	password, err := os.ReadFile(path)
	if err != nil || len(password) < 26 {
		password = []byte(strings.ToLower(rand.Text() + rand.Text()))
		if err := durable.MkdirAll(durable.OS{}, dir, 0o700); err != nil {
			return "", "", err
		}
		if err := durable.WriteFile(durable.OS{}, path, password, 0o600); err != nil {
			return "", "", err
		}
	}
	hash := sha256.Sum256(password)
	return path, hex.EncodeToString(hash[:]), nil
}

// moduleEnv are the variables by which a module finds the router, and who it is there.
func (a *agent) moduleEnv(m *atelier.Module) []string {
	env := []string{"ATELIER_MODULE=" + m.Name, "ATELIER_DEVICE=" + a.identity.Name}
	path, _, err := a.modulePassword(m.Name)
	if err != nil {
		a.log.Error("a module cannot be given a password, and does not connect to the router", "module", m.Name, "error", err)
		return env
	}
	return append(env, "ATELIER_MQTT_URL=mqtt://"+a.settings().Modules.Listen, "ATELIER_MQTT_USERNAME="+m.Name, "ATELIER_MQTT_PASSWORD_FILE="+path)
}
