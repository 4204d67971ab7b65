package rest

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/messages"
)

// TwinDevice is the part of an input that may name a device of a twin.
type TwinDevice struct {
	Device string `query:"device" maxLength:"63" doc:"Name or id of a device: the twin of the module on it; without it that of all modules of the deployment"`
}

func (s *server) registerMessages(api huma.API) {
	const tag = "Messages"
	register(s, api, operation{
		ID: "list-messages", Method: http.MethodGet, Path: devicePath + "/messages", Tag: tag, Summary: "List what modules of a device said into the workspace",
		Description: "In the order in which they came. They are kept for a while, and within a bound for each device; the oldest go first.",
		Verb:        access.MessageList, Kind: catalog.Devices.Kind, Object: "device",
	}, func(ctx context.Context, in *struct {
		DeviceParam
		PageParams
		Module string `query:"module" maxLength:"63" doc:"Only those of this module"`
		Output string `query:"output" maxLength:"63" doc:"Only those of this output"`
		After  string `query:"after" maxLength:"80" doc:"Only those that came after the message with this id"`
	}) (*list[atelier.ModuleMessage], error) {
		d, err := s.fleet.Device(ctx, workspaceOf(ctx), in.Device)
		if err != nil {
			return nil, err
		}
		return pageOf(ctx, s, "message", in.paging(), func(after string, limit int) ([]atelier.ModuleMessage, string, error) {
			if after == "" {
				after = in.After
			}
			return s.messages.List(d, messages.Filter{Module: in.Module, Output: in.Output, After: after, Limit: limit})
		})
	})
	twinPath := deploymentPath + "/twin"
	register(s, api, operation{
		ID: "get-twin", Method: http.MethodGet, Path: twinPath, Tag: tag, Summary: "Show the twin of a deployment's modules, or of the one on a device",
		Verb: access.TwinShow, Kind: catalog.Deployments.Kind, Object: "deployment",
	}, func(ctx context.Context, in *struct {
		DeploymentParam
		TwinDevice
	}) (*resource[atelier.Twin], error) {
		t, revision, err := s.fleet.Twin(ctx, workspaceOf(ctx), in.Deployment, in.Device)
		return twinAnswer(t, revision, err)
	})
	register(s, api, operation{
		ID: "update-twin", Method: http.MethodPatch, Path: twinPath, Tag: tag, Summary: "Change desired properties of modules",
		Description: "The body is a JSON merge patch (RFC 7396): null takes a property away. A device gets the deployment's properties with its own merged in.",
		Verb:        access.TwinUpdate, Kind: catalog.Deployments.Kind, Object: "deployment", Errors: []atelier.Code{atelier.Stale, atelier.TooLarge},
	}, func(ctx context.Context, in *struct {
		DeploymentParam
		TwinDevice
		IfMatch
		Body json.RawMessage
	}) (*resource[atelier.Twin], error) {
		revision, err := in.revision()
		if err != nil {
			return nil, err
		}
		revision-- // see twinAnswer; -1 for any
		t, now, err := s.fleet.UpdateTwin(ctx, workspaceOf(ctx), in.Deployment, in.Device, revision, in.Body)
		return twinAnswer(t, now, err)
	})
}

// twinAnswer answers a twin. Its ETag is one more than its revision, which is 0 while nobody
// has set anything.
func twinAnswer(t atelier.Twin, revision int64, err error) (*resource[atelier.Twin], error) {
	if err != nil {
		return nil, err
	}
	return &resource[atelier.Twin]{ETag: etag(revision + 1), Body: t}, nil
}
