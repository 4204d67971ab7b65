package rest

import (
	"context"
	"io"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/fleet"
	"github.com/atelier-edge/atelier/hub/store"
)

const (
	tagDevices  = "Devices"
	devicesPath = inWorkspace + "/devices"
	devicePath  = devicesPath + "/{device}"
	plainText   = "text/plain; charset=utf-8"
)

// DeviceParam is the part of an input that names a device.
type DeviceParam struct {
	WorkspaceParam
	Device string `path:"device" maxLength:"63" doc:"Name or id of the device"`
}

type deviceChange struct {
	Labels   *atelier.Labels         `json:"labels,omitempty" doc:"Replaces all labels"`
	Transfer *atelier.TransferChange `json:"transfer,omitempty" doc:"How fast, and when, content may be transferred to the device"`
}

// DeviceWhy says why a device is not in its desired state.
type DeviceWhy struct {
	Device   string          `json:"device" doc:"Name of the device"`
	InSync   bool            `json:"in_sync" doc:"Whether it runs what it shall"`
	Findings []DeviceFinding `json:"findings" nullable:"false"`
}

// DeviceFinding is one thing that is not as desired.
type DeviceFinding struct {
	Subject string      `json:"subject" doc:"What it is about: connection, certificate, a deployment, …"`
	Why     atelier.Why `json:"why"`
}

func (s *server) registerFleet(api huma.API) {
	s.registerDevices(api)
	s.registerDeviceStates(api)
	s.registerDeployments(api)
	s.registerEndpoints(api)
	s.registerData(api)
}

func (s *server) registerDevices(api huma.API) {
	kind, meta := catalog.Devices.Kind, catalog.Devices.Meta
	register(s, api, operation{
		ID: "list-devices", Method: http.MethodGet, Path: devicesPath, Tag: tagDevices, Summary: "List devices",
		Verb: access.DeviceList, Kind: kind, Watch: true,
	}, func(ctx context.Context, in *struct {
		WorkspaceParam
		Paging
		Selector string `query:"selector" maxLength:"4096" doc:"Only devices with all of these labels: key=value,key=value"`
	}) (*list[atelier.Device], error) {
		labels, err := atelier.ParseLabels(in.Selector)
		if err != nil {
			return nil, err
		}
		return pageOf(ctx, s, kind, in.Paging, func(after string, limit int) ([]atelier.Device, string, error) {
			return s.fleet.Devices(ctx, workspaceOf(ctx), labels, after, limit)
		})
	})
	register(s, api, operation{
		ID: "get-device", Method: http.MethodGet, Path: devicePath, Tag: tagDevices, Summary: "Show a device",
		Verb: access.DeviceShow, Kind: kind, Object: "device", Watch: true,
	}, func(ctx context.Context, in *struct {
		DeviceParam
		WatchParams
	}) (*resource[atelier.Device], error) {
		d, err := s.fleet.Device(ctx, workspaceOf(ctx), in.Device)
		return resourceOf(d, err, meta)
	})
	register(s, api, operation{
		ID: "update-device", Method: http.MethodPatch, Path: devicePath, Tag: tagDevices, Summary: "Change a device's labels, or how content is transferred to it",
		Description: "Deployments select by labels: the device begins and ends to run what they say. A window that closes stops a transfer, which goes on when it opens.",
		Verb:        access.DeviceUpdate, Kind: kind, Object: "device", Errors: []atelier.Code{atelier.Stale},
	}, func(ctx context.Context, in *struct {
		DeviceParam
		IfMatch
		Body deviceChange
	}) (*resource[atelier.Device], error) {
		revision, err := in.revision()
		if err != nil {
			return nil, err
		}
		d, err := s.fleet.UpdateDevice(ctx, workspaceOf(ctx), in.Device, revision, fleet.DeviceChange(in.Body))
		return resourceOf(d, err, meta)
	})
	register(s, api, operation{
		ID: "revoke-device", Method: http.MethodPost, Path: devicePath + "/revoke", Tag: tagDevices, Summary: "Cut a device off at once",
		Description: "Its connections end, its certificates are worth nothing, and it cannot join again with its key. It keeps running what it runs.",
		Verb:        access.DeviceRevoke, Kind: kind, Object: "device",
	}, func(ctx context.Context, in *DeviceParam) (*resource[atelier.Device], error) {
		d, err := s.enrol.Revoke(ctx, workspaceOf(ctx), in.Device)
		return resourceOf(d, err, meta)
	})
	register(s, api, operation{
		ID: "delete-device", Method: http.MethodDelete, Path: devicePath, Tag: tagDevices, Summary: "Revoke a device and forget it",
		Verb: access.DeviceDelete, Kind: kind, Object: "device", Errors: []atelier.Code{atelier.Stale},
	}, func(ctx context.Context, in *struct {
		DeviceParam
		IfMatchOptional
	}) (*empty, error) {
		revision, err := in.revision()
		if err != nil {
			return nil, err
		}
		return nil, s.enrol.Delete(ctx, workspaceOf(ctx), in.Device, revision)
	})
}

func (s *server) registerDeviceStates(api huma.API) {
	kind := catalog.Devices.Kind
	register(s, api, operation{
		ID: "get-desired-state", Method: http.MethodGet, Path: devicePath + "/desired", Tag: tagDevices, Summary: "Show what a device shall run",
		Verb: access.DeviceShow, Kind: kind, Object: "device",
	}, func(ctx context.Context, in *DeviceParam) (*answer[atelier.DesiredState], error) {
		return answerOf(s.fleet.Desired(ctx, workspaceOf(ctx), in.Device))
	})
	register(s, api, operation{
		ID: "get-reported-state", Method: http.MethodGet, Path: devicePath + "/reported", Tag: tagDevices, Summary: "Show what a device said last",
		Verb: access.DeviceShow, Kind: kind, Object: "device",
	}, func(ctx context.Context, in *DeviceParam) (*answer[atelier.ReportedState], error) {
		return answerOf(s.fleet.Reported(ctx, workspaceOf(ctx), in.Device))
	})
	register(s, api, operation{
		ID: "get-device-why", Method: http.MethodGet, Path: devicePath + "/why", Tag: tagDevices,
		Summary: "Say why a device is not in its desired state", Description: "Each finding says what would mend it.",
		Verb: access.DeviceShow, Kind: kind, Object: "device",
	}, func(ctx context.Context, in *DeviceParam) (*answer[DeviceWhy], error) {
		w, err := s.fleet.Why(ctx, workspaceOf(ctx), in.Device)
		out := DeviceWhy{Device: w.Device, InSync: w.InSync, Findings: make([]DeviceFinding, len(w.Findings))}
		for i, f := range w.Findings {
			out.Findings[i] = DeviceFinding(f)
		}
		return answerOf(out, err)
	})
	register(s, api, operation{
		ID: "collect-log", Method: http.MethodPost, Path: devicePath + "/logs", Tag: tagDevices, Summary: "Fetch the end of a log from a device",
		Description: "The log of a deployment's module, or the agent's own. It comes over MQTT and is kept nowhere.",
		Verb:        access.DeviceLogs, Kind: kind, Object: "device", Reply: plainText, Errors: []atelier.Code{atelier.Unavailable, atelier.Timeout, atelier.Exhausted},
	}, func(ctx context.Context, in *struct {
		DeviceParam
		Deployment string `query:"deployment" maxLength:"63" doc:"Name or id of the deployment; the agent's log without it"`
		MaxBytes   int64  `query:"max_bytes" minimum:"1" maximum:"67108864" default:"1048576" doc:"How much of its end, at most"`
	}) (*stream, error) {
		log, err := s.fleet.CollectLog(ctx, workspaceOf(ctx), in.Device, in.Deployment, in.MaxBytes)
		if err != nil {
			return nil, err
		}
		return &stream{func(c huma.Context) {
			defer func() { _ = log.Close() }() // the answer is out; what is left behind is swept at the next start
			c.SetHeader("Content-Type", plainText)
			_, _ = io.Copy(c.BodyWriter(), log) // a caller that has gone is no failure of ours
		}}, nil
	})
}

// answerOf makes the answer from what a call returned.
func answerOf[T any](v T, err error) (*answer[T], error) {
	if err != nil {
		return nil, err
	}
	return &answer[T]{v}, nil
}

// pageOf answers a page that read returns: what follows an id, and the id after
// which the next page begins, "" for none.
func pageOf[T any](ctx context.Context, s *server, kind string, p Paging, read func(after string, limit int) ([]T, string, error)) (*list[T], error) {
	after, err := openCursor(kind, p.Cursor)
	if err != nil {
		return nil, err
	}
	out := &list[T]{}
	err = s.store.View(ctx, func(tx store.Tx) (err error) {
		out.Sequence, err = tx.LastEvent()
		return err
	})
	if err != nil {
		return nil, err
	}
	items, next, err := read(after, p.Limit)
	if err != nil {
		return nil, err
	}
	if out.Body.Items = items; items == nil {
		out.Body.Items = []T{}
	}
	if next != "" {
		out.Body.Next = sealCursor(kind, next)
	}
	return out, nil
}
