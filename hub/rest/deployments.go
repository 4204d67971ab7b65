package rest

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/fleet"
	"github.com/atelier-edge/atelier/hub/store"
)

const (
	deploymentsPath = inWorkspace + "/deployments"
	deploymentPath  = deploymentsPath + "/{deployment}"
)

// DeploymentParam is the part of an input that names a deployment.
type DeploymentParam struct {
	WorkspaceParam
	Deployment string `path:"deployment" maxLength:"63" doc:"Name or id of the deployment"`
}

// VersionRef is a version's number, as a number or a string, or "latest".
type VersionRef string

// UnmarshalJSON reads 2, "2" or "latest".
func (v *VersionRef) UnmarshalJSON(b []byte) error {
	var n int
	if json.Unmarshal(b, &n) == nil {
		*v = VersionRef(strconv.Itoa(n))
		return nil
	}
	return json.Unmarshal(b, (*string)(v))
}

// Schema implements huma.SchemaProvider.
func (VersionRef) Schema(huma.Registry) *huma.Schema {
	one, long := 1.0, 26
	return &huma.Schema{
		Description: "Number of the version, or latest, which stands for the newest at the time of the request",
		OneOf:       []*huma.Schema{{Type: huma.TypeInteger, Minimum: &one}, {Type: huma.TypeString, MaxLength: &long}},
	}
}

// DeploymentFields are what a deployment can be made of and changed to; exported for the OpenAPI document.
type DeploymentFields struct {
	Description *string                 `json:"description,omitempty" maxLength:"4096"`
	Version     *VersionRef             `json:"version,omitempty"`
	Endpoint    *string                 `json:"endpoint,omitempty" doc:"Name of the endpoint; the deployment's own without it"`
	Target      *string                 `json:"target,omitempty" doc:"Kind of target; the device's default without it"`
	Limits      *atelier.Limits         `json:"limits,omitempty"`
	Collect     *atelier.Collection     `json:"collect,omitempty" doc:"Which requests are recorded, inputs and outputs; replaces what was said before as a whole. No module is restarted"`
	Serving     *atelier.ServingChange  `json:"serving,omitempty" doc:"How the modules answer requests; fields that are left out stay as they are, 0 leaves one to the model server"`
	Image       *ImageFields            `json:"image,omitempty" doc:"Container image to run in place of a model"`
	Routes      *[]atelier.MessageRoute `json:"routes,omitempty" nullable:"false" doc:"Where messages of modules go, such as FROM /modules/a/outputs/x INTO upstream; replaces what was said before as a whole. No module is restarted"`
	Prefetch    bool                    `json:"prefetch,omitempty" doc:"Let the devices fetch the version and not run it yet; what they run goes on"`
}

// ImageFields say which container image a deployment runs, and how; exported for the OpenAPI document.
type ImageFields struct {
	Reference *string                    `json:"reference,omitempty" maxLength:"512" doc:"REPOSITORY:TAG or REPOSITORY@DIGEST in the workspace's registry; a tag is resolved at once"`
	Container *atelier.ContainerSettings `json:"container,omitempty" doc:"How it runs, beyond what the image says; replaces what was said before as a whole"`
}

func (i *ImageFields) spec() *fleet.ImageSpec {
	if i == nil {
		return nil
	}
	return &fleet.ImageSpec{Reference: i.Reference, Container: i.Container}
}

// TrialFields are what a version gets that runs beside the one that serves; exported for the OpenAPI document.
type TrialFields struct {
	Kind      atelier.TrialKind  `json:"kind" enum:"canary,shadow" doc:"A canary answers a share of the requests; a shadow gets copies, and its answers are compared"`
	Weight    *float64           `json:"weight,omitempty" minimum:"0" maximum:"100" doc:"Percent of the requests that a canary answers"`
	Sticky    *string            `json:"sticky,omitempty" maxLength:"100" doc:"key, or header:NAME: the same version answers requests with the same key, or value of the field"`
	Sample    *float64           `json:"sample,omitempty" maximum:"1" doc:"Share of the requests of which a shadow gets copies, over 0 to 1; 1 without it"`
	Tolerance *atelier.Tolerance `json:"tolerance,omitempty" doc:"How far a shadow's numbers may be from those that were given"`
}

func (t *TrialFields) spec() *fleet.TrialSpec {
	if t == nil {
		return nil
	}
	return &fleet.TrialSpec{Kind: t.Kind, Weight: t.Weight, Sticky: t.Sticky, Sample: t.Sample, Tolerance: t.Tolerance}
}

// TrialChange is what a change of a deployment says of the version beside the one that serves; exported for the OpenAPI document.
type TrialChange struct {
	Trial    *TrialFields `json:"trial,omitempty" doc:"Let the devices run the version beside the one that serves, or change what the one that does gets"`
	Promote  bool         `json:"promote,omitempty" doc:"Make the version that runs beside the one that serves the one that does"`
	Rollback bool         `json:"rollback,omitempty" doc:"End the version that runs beside the one that serves"`
}

func (c *TrialChange) set(s *fleet.DeploymentSpec) {
	s.Trial, s.Promote, s.Rollback = c.Trial.spec(), c.Promote, c.Rollback
}

type newDeployment struct {
	Name     string           `json:"name" doc:"1 to 63 characters of a-z, 0-9, '-', '_' and '.'"`
	Model    *string          `json:"model,omitempty" maxLength:"63" doc:"Name or id of the model; none where an image is run"`
	Selector atelier.Selector `json:"selector" doc:"On which devices: all, those with all of the labels, or those that are named"`
	DeploymentFields
}

type deploymentChange struct {
	Name     *string           `json:"name,omitempty"`
	Model    *string           `json:"model,omitempty" maxLength:"63" doc:"Name or id of the model"`
	Selector *atelier.Selector `json:"selector,omitempty" doc:"Replaces the selector as a whole"`
	Switch   bool              `json:"switch,omitempty" doc:"Let the devices run the version that they prefetched"`
	TrialChange
	DeploymentFields
}

func (d *DeploymentFields) spec() fleet.DeploymentSpec {
	return fleet.DeploymentSpec{
		Description: d.Description, Version: (*string)(d.Version), Endpoint: d.Endpoint, Target: d.Target, Limits: d.Limits,
		Collect: d.Collect, Serving: d.Serving, Routes: d.Routes, Prefetch: d.Prefetch, Image: d.Image.spec(),
	}
}

// planRequest is what a deploy would ask for: of the deployment of that name, or of a
// new one.
type planRequest struct {
	Name     string            `json:"name" maxLength:"63" doc:"Name or id of the deployment to change, or the name of a new one"`
	Model    *string           `json:"model,omitempty" maxLength:"63" doc:"Name or id of the model"`
	Selector *atelier.Selector `json:"selector,omitempty" doc:"Replaces the selector as a whole"`
	Switch   bool              `json:"switch,omitempty" doc:"Let the devices run the version that they prefetched"`
	TrialChange
	DeploymentFields
}

// Trace says what answered a request to an endpoint.
type Trace struct {
	Request    string         `json:"request"`
	Rollout    string         `json:"rollout" doc:"Id of the rollout that answered"`
	Deployment string         `json:"deployment" doc:"Name that the deployment had"`
	Endpoint   string         `json:"endpoint"`
	Package    atelier.Digest `json:"package"`
	Model      string         `json:"model"`
	Version    int            `json:"version"`
	Digest     atelier.Digest `json:"digest" doc:"The model version's"`
	By         string         `json:"by,omitempty" doc:"Who asked for the rollout"`
	Created    time.Time      `json:"created" doc:"When it began"`
}

func (s *server) registerDeployments(api huma.API) {
	const tag = "Deployments"
	kind, meta := catalog.Deployments.Kind, catalog.Deployments.Meta
	register(s, api, operation{
		ID: "list-deployments", Method: http.MethodGet, Path: deploymentsPath, Tag: tag, Summary: "List deployments",
		Verb: access.DeploymentList, Kind: kind, Watch: true,
	}, func(ctx context.Context, in *struct {
		WorkspaceParam
		Paging
	}) (*list[atelier.Deployment], error) {
		return listOf(ctx, s, catalog.Deployments, store.Query{Workspace: workspaceOf(ctx)}, in.Paging)
	})
	register(s, api, operation{
		ID: "create-deployment", Method: http.MethodPost, Path: deploymentsPath, Tag: tag, Status: http.StatusCreated,
		Summary: "Deploy a model version, or a container image, to devices", Description: "Makes the endpoint too, with two keys.",
		Verb: access.DeploymentCreate, Kind: kind, Errors: []atelier.Code{atelier.Exists},
	}, func(ctx context.Context, in *struct {
		WorkspaceParam
		Body newDeployment
	}) (*resource[atelier.Deployment], error) {
		spec := in.Body.spec()
		spec.Name, spec.Model, spec.Selector = &in.Body.Name, in.Body.Model, &in.Body.Selector
		d, err := s.fleet.CreateDeployment(ctx, workspaceOf(ctx), spec)
		return resourceOf(d, err, meta)
	})
	register(s, api, operation{
		ID: "plan-deployment", Method: http.MethodPost, Path: deploymentsPath + "/plan", Tag: tag,
		Summary: "Say what a deploy would bring to devices", Harmless: true,
		Description: "Per device and in all: bytes over the wire and on disk, the way and why, the time at the device's rate, and who would not take it. " +
			"Nothing is changed. Differences that the deploy would use are made; the answer comes when they are, or after `wait`, and then counts them in `pending`.",
		Verb: access.DeploymentPlan, Kind: kind, Errors: []atelier.Code{atelier.Exists, atelier.Conflict},
	}, func(ctx context.Context, in *struct {
		WorkspaceParam
		Wait int `query:"wait" minimum:"0" maximum:"60" default:"0" doc:"Seconds to wait for differences that are being made"`
		Body planRequest
	}) (*answer[atelier.DeploymentPlan], error) {
		spec := in.Body.spec()
		spec.Name, spec.Model, spec.Selector, spec.Switch = &in.Body.Name, in.Body.Model, in.Body.Selector, in.Body.Switch
		in.Body.set(&spec)
		return answerOf(s.fleet.PlanDeployment(ctx, workspaceOf(ctx), spec, time.Duration(in.Wait)*time.Second))
	})
	register(s, api, operation{
		ID: "get-deployment", Method: http.MethodGet, Path: deploymentPath, Tag: tag, Summary: "Show a deployment",
		Verb: access.DeploymentShow, Kind: kind, Object: "deployment", Watch: true,
	}, func(ctx context.Context, in *struct {
		DeploymentParam
		WatchParams
	}) (*resource[atelier.Deployment], error) {
		d, err := s.fleet.Deployment(ctx, workspaceOf(ctx), in.Deployment)
		return resourceOf(d, err, meta)
	})
	register(s, api, operation{
		ID: "update-deployment", Method: http.MethodPatch, Path: deploymentPath, Tag: tag, Summary: "Change a deployment",
		Description: "A change of what runs, where, or how begins a new rollout. A new version takes the traffic once it is ready; no request is dropped. " +
			"With prefetch the version is only fetched; a later change with switch lets the devices run it. Any other change of model or version takes the prefetch back. " +
			"With trial the version runs beside the one that serves, for a share of the requests or for copies; promote and rollback end that, as does any other change of model or version.",
		Verb: access.DeploymentUpdate, Kind: kind, Object: "deployment", Errors: []atelier.Code{atelier.Stale, atelier.Exists, atelier.Conflict},
	}, func(ctx context.Context, in *struct {
		DeploymentParam
		IfMatch
		Body deploymentChange
	}) (*resource[atelier.Deployment], error) {
		revision, err := in.revision()
		if err != nil {
			return nil, err
		}
		spec := in.Body.spec()
		spec.Name, spec.Model, spec.Selector, spec.Switch = in.Body.Name, in.Body.Model, in.Body.Selector, in.Body.Switch
		in.Body.set(&spec)
		d, err := s.fleet.UpdateDeployment(ctx, workspaceOf(ctx), in.Deployment, revision, spec)
		return resourceOf(d, err, meta)
	})
	register(s, api, operation{
		ID: "delete-deployment", Method: http.MethodDelete, Path: deploymentPath, Tag: tag, Summary: "End a deployment",
		Description: "Takes it off its devices and removes its endpoint.",
		Verb:        access.DeploymentDelete, Kind: kind, Object: "deployment", Errors: []atelier.Code{atelier.Stale},
	}, func(ctx context.Context, in *struct {
		DeploymentParam
		IfMatchOptional
	}) (*empty, error) {
		revision, err := in.revision()
		if err != nil {
			return nil, err
		}
		return nil, s.fleet.DeleteDeployment(ctx, workspaceOf(ctx), in.Deployment, revision)
	})
	register(s, api, operation{
		ID: "list-deployment-devices", Method: http.MethodGet, Path: deploymentPath + "/devices", Tag: tag,
		Summary: "Show a deployment's state on each device", Verb: access.DeploymentShow, Kind: kind, Object: "deployment",
	}, func(ctx context.Context, in *struct {
		DeploymentParam
		PageParams
	}) (*list[atelier.DeviceStatus], error) {
		return pageOf(ctx, s, catalog.Devices.Kind, in.paging(), func(after string, limit int) ([]atelier.DeviceStatus, string, error) {
			return s.fleet.DeviceStatuses(ctx, workspaceOf(ctx), in.Deployment, after, limit)
		})
	})
	register(s, api, operation{
		ID: "trace-request", Method: http.MethodGet, Path: inWorkspace + "/requests/{request}", Tag: tag,
		Summary: "Say what answered a request", Description: "Every answer of an endpoint carries the request's id in " + atelier.HeaderRequestID + ".",
		Verb: access.EndpointShow, Kind: catalog.Rollouts.Kind, Object: "request",
	}, func(ctx context.Context, in *struct {
		WorkspaceParam
		Request string `path:"request" maxLength:"128" doc:"Id of a request"`
	}) (*answer[Trace], error) {
		r, err := s.fleet.Trace(ctx, workspaceOf(ctx), in.Request)
		return answerOf(Trace{
			Request: in.Request, Rollout: r.ID, Deployment: r.DeploymentName, Endpoint: r.Endpoint, Package: r.Package,
			Model: r.Model, Version: r.Version, Digest: r.Digest, By: r.By, Created: r.Created,
		}, err)
	})
}

// PageParams is Paging for lists that cannot be watched.
type PageParams struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"Most items of a page"`
	Cursor string `query:"cursor" maxLength:"256" doc:"Where the page begins: next of the page before"`
}

func (p PageParams) paging() Paging { return Paging{Limit: p.Limit, Cursor: p.Cursor} }
