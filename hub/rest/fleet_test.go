package rest

import (
	"log/slog"
	"path/filepath"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/fleet"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/hub/vault"
	"github.com/atelier-edge/atelier/internal/durable"
)

// withFleet gives the hub a fleet that answers requests; no device can connect.
func withFleet(t testing.TB, h *hub) {
	t.Helper()
	v, err := vault.Open(durable.OS{}, filepath.Join(t.TempDir(), "vault.key"))
	if err != nil {
		t.Fatal(err)
	}
	h.server.fleet = fleet.New(fleet.Config{Store: h.store, Access: h.access, Vault: v, Log: slog.New(slog.DiscardHandler)})
}

func TestDeployments(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	withFleet(t, h)
	ws := h.workspace("lab")
	h.register("lab", "digits", 1)
	h.register("lab", "digits", 2)
	const path = "/v1/workspaces/lab/deployments"
	spec := map[string]any{"name": "front", "model": "digits", "version": 1, "selector": map[string]any{"labels": map[string]string{"where": "edge"}}}
	var d atelier.Deployment
	r := h.do(h.admin, "POST", path, spec)
	r.into(t, 201, &d)
	if d.Version != 1 || d.Endpoint != "front" || d.Rollout == "" || r.header.Get("ETag") != `"1"` {
		t.Errorf("deployment %+v with ETag %s", d, r.header.Get("ETag"))
	}
	if p := h.do(h.admin, "POST", path, spec).problem(t); p.Code != atelier.Exists {
		t.Errorf("the same name again: %+v", p)
	}
	spec["name"], spec["version"] = "odd", "newest"
	if p := h.do(h.admin, "POST", path, spec).problem(t); p.Code != atelier.Invalid || p.Field != "version" {
		t.Errorf("an odd version: %+v", p)
	}
	spec["version"] = true
	if p := h.do(h.admin, "POST", path, spec).problem(t); p.Code != atelier.Invalid {
		t.Errorf("a version that is neither number nor text: %+v", p)
	}
	if p := h.do(h.admin, "PATCH", path+"/front", map[string]any{"version": "latest"}).problem(t); p.Code != atelier.Invalid {
		t.Errorf("a change without If-Match: %+v", p)
	}
	h.do(h.admin, "PATCH", path+"/front", map[string]any{"version": "latest"}, `If-Match: "1"`).into(t, 200, &d)
	if d.Version != 2 {
		t.Errorf("version %d, expected the latest", d.Version)
	}
	if p := h.do(h.admin, "PATCH", path+"/front", map[string]any{"version": "1"}, `If-Match: "1"`).problem(t); p.Code != atelier.Stale {
		t.Errorf("a change of an old revision: %+v", p)
	}
	var trace Trace
	h.do(h.admin, "GET", "/v1/workspaces/lab/requests/"+d.Rollout+"-abc", nil).into(t, 200, &trace)
	if trace.Version != 2 || trace.Model != "digits" || trace.Deployment != "front" || trace.By != "token:admin" {
		t.Errorf("trace %+v", trace)
	}

	var keys, rotated fleet.Keys
	h.do(h.admin, "GET", "/v1/workspaces/lab/endpoints/front/keys", nil).into(t, 200, &keys)
	h.do(h.admin, "POST", "/v1/workspaces/lab/endpoints/front/keys/secondary/rotate", nil).into(t, 200, &rotated)
	if rotated.Primary != keys.Primary || rotated.Secondary == keys.Secondary {
		t.Errorf("keys %+v became %+v", keys, rotated)
	}
	viewer := h.token("reader", "viewer", "")
	if p := h.do(viewer, "GET", "/v1/workspaces/lab/endpoints/front/keys", nil).problem(t); p.Code != atelier.Forbidden {
		t.Errorf("a viewer reads keys: %+v", p)
	}
	var endpoints struct{ Items []fleet.Endpoint }
	h.do(viewer, "GET", "/v1/workspaces/lab/endpoints", nil).into(t, 200, &endpoints)
	if len(endpoints.Items) != 1 || endpoints.Items[0].Deployment != d.ID {
		t.Errorf("endpoints %+v", endpoints)
	}

	device := atelier.Device{Meta: atelier.Meta{Name: "kiosk"}, Labels: atelier.Labels{"where": "edge"}}
	err := h.store.Update(t.Context(), store.By{Actor: "test"}, func(tx store.Tx) error {
		_, err := catalog.Devices.Insert(tx, ws.ID, "", device)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var statuses struct{ Items []atelier.DeviceStatus }
	h.do(viewer, "GET", path+"/front/devices?limit=1", nil).into(t, 200, &statuses)
	if len(statuses.Items) != 1 || statuses.Items[0].DeviceName != "kiosk" || statuses.Items[0].State() != atelier.Pending {
		t.Errorf("statuses %+v", statuses)
	}
	var why DeviceWhy
	h.do(viewer, "GET", "/v1/workspaces/lab/devices/kiosk/why", nil).into(t, 200, &why)
	if why.InSync || len(why.Findings) == 0 || why.Findings[0].Why.Reason() != atelier.ReasonNeverConnected {
		t.Errorf("why %+v", why)
	}
	var devices struct{ Items []atelier.Device }
	h.do(viewer, "GET", "/v1/workspaces/lab/devices?selector=where%3Dshop", nil).into(t, 200, &devices)
	if len(devices.Items) != 0 {
		t.Errorf("a selector selects %d devices of another label", len(devices.Items))
	}
	h.do(h.admin, "PATCH", "/v1/workspaces/lab/devices/kiosk", map[string]any{"labels": map[string]string{"where": "shop"}}, "If-Match: *").into(t, 200, nil)
	h.do(viewer, "GET", "/v1/workspaces/lab/devices?selector=where%3Dshop", nil).into(t, 200, &devices)
	if len(devices.Items) != 1 {
		t.Errorf("the selector selects %d devices", len(devices.Items))
	}
	for _, missing := range []string{"/desired", "/reported"} {
		if p := h.do(viewer, "GET", "/v1/workspaces/lab/devices/kiosk"+missing, nil).problem(t); p.Code != atelier.NotFound || p.Remedy == "" {
			t.Errorf("%s of a device that never connected: %+v", missing, p)
		}
	}
	if p := h.do(h.admin, "POST", "/v1/workspaces/lab/devices/kiosk/logs", nil).problem(t); p.Code != atelier.Unavailable {
		t.Errorf("log of a device that is not connected: %+v", p)
	}
	h.do(h.admin, "DELETE", path+"/front", nil).into(t, 204, nil)
	if p := h.do(h.admin, "GET", path+"/front", nil).problem(t); p.Code != atelier.NotFound {
		t.Errorf("a deleted deployment: %+v", p)
	}
}
