package client

import (
	"context"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// NewJoinToken asks for a join token.
type NewJoinToken struct {
	Name      string         `json:"name,omitempty"`
	ExpiresIn string         `json:"expires_in,omitempty"` // a Go duration; the hub's default where empty
	Uses      int            `json:"uses,omitempty"`
	Labels    atelier.Labels `json:"labels,omitempty"`
}

// JoinToken is a join token with its secret, which the hub shows once, and what
// a device needs besides it.
type JoinToken struct {
	atelier.JoinToken
	Secret string `json:"secret,omitempty"`
}

// CreateJoinToken makes a join token.
func (c *Client) CreateJoinToken(ctx context.Context, ws string, t NewJoinToken) (JoinToken, error) {
	var out JoinToken
	return out, c.post(ctx, in(ws, "join-tokens"), t, &out)
}

// JoinTokens lists the workspace's join tokens, without their secrets.
func (c *Client) JoinTokens(ctx context.Context, ws string) iter.Seq2[JoinToken, error] {
	return list[JoinToken](ctx, c, in(ws, "join-tokens"), nil)
}

// RevokeJoinToken ends a join token.
func (c *Client) RevokeJoinToken(ctx context.Context, ws, token string) error {
	return c.delete(ctx, in(ws, "join-tokens", token))
}

// Devices lists the workspace's devices that carry every label of selector;
// an empty one selects all.
func (c *Client) Devices(ctx context.Context, ws, selector string) iter.Seq2[atelier.Device, error] {
	query := url.Values{}
	if selector != "" {
		query.Set("selector", selector)
	}
	return list[atelier.Device](ctx, c, in(ws, "devices"), query)
}

// Device returns a device by name or id.
func (c *Client) Device(ctx context.Context, ws, device string) (atelier.Device, error) {
	var d atelier.Device
	return d, c.get(ctx, in(ws, "devices", device), nil, &d)
}

// LabelDevice replaces a device's labels.
func (c *Client) LabelDevice(ctx context.Context, ws, device string, labels atelier.Labels) (atelier.Device, error) {
	var d atelier.Device
	return d, c.patch(ctx, in(ws, "devices", device), map[string]any{"labels": labels}, &d)
}

// SetDeviceTransfer changes how content is transferred to a device.
func (c *Client) SetDeviceTransfer(ctx context.Context, ws, device string, t atelier.TransferChange) (atelier.Device, error) {
	var d atelier.Device
	return d, c.patch(ctx, in(ws, "devices", device), map[string]any{"transfer": t}, &d)
}

// RevokeDevice cuts a device off at once.
func (c *Client) RevokeDevice(ctx context.Context, ws, device string) error {
	return c.post(ctx, in(ws, "devices", device, "revoke"), nil, nil)
}

// DeleteDevice revokes a device and forgets it.
func (c *Client) DeleteDevice(ctx context.Context, ws, device string) error {
	return c.delete(ctx, in(ws, "devices", device))
}

// Why says why a device is not in its desired state.
type Why struct {
	Device   string    `json:"device"`
	InSync   bool      `json:"in_sync"`
	Findings []Finding `json:"findings"`
}

// Finding is one thing that is not as desired.
type Finding struct {
	Subject string      `json:"subject"` // what it is about: "connection", "deployment digits", …
	Why     atelier.Why `json:"why"`
}

// Why asks why a device is not in its desired state.
func (c *Client) Why(ctx context.Context, ws, device string) (Why, error) {
	var w Why
	return w, c.get(ctx, in(ws, "devices", device, "why"), nil, &w)
}

// Logs fetches the end of a log from a device: of the module of a deployment,
// or the agent's own where deployment is empty. The caller closes it.
func (c *Client) Logs(ctx context.Context, ws, device, deployment string, maxBytes int64) (io.ReadCloser, error) {
	query := url.Values{}
	if deployment != "" {
		query.Set("deployment", deployment)
	}
	if maxBytes > 0 {
		query.Set("max_bytes", strconv.FormatInt(maxBytes, 10))
	}
	res, err := c.send(ctx, request{method: http.MethodPost, path: in(ws, "devices", device, "logs"), query: query})
	if err != nil {
		return nil, err
	}
	return res.Body, nil
}

// DeploymentSpec is what a deployment asks for.
type DeploymentSpec struct {
	Name        string                  `json:"name,omitempty"`
	Description string                  `json:"description,omitempty"`
	Model       string                  `json:"model,omitempty"`
	Version     string                  `json:"version,omitempty"` // a number, or "latest"
	Selector    *atelier.Selector       `json:"selector,omitempty"`
	Endpoint    string                  `json:"endpoint,omitempty"`
	Target      string                  `json:"target,omitempty"`
	Limits      *atelier.Limits         `json:"limits,omitempty"`
	Collect     *atelier.Collection     `json:"collect,omitempty"`
	Serving     *atelier.ServingChange  `json:"serving,omitempty"`  // changes the settings that it has
	Routes      *[]atelier.MessageRoute `json:"routes,omitempty"`   // replace those that it has
	Prefetch    bool                    `json:"prefetch,omitempty"` // the devices fetch the version and do not run it yet
	Switch      bool                    `json:"switch,omitempty"`   // the devices run what they prefetched
	Trial       *TrialSpec              `json:"trial,omitempty"`    // the devices run the version beside the one that serves
	Promote     bool                    `json:"promote,omitempty"`  // what runs beside it takes its place
	Rollback    bool                    `json:"rollback,omitempty"` // what runs beside it ends
	Image       *ImageSpec              `json:"image,omitempty"`    // the devices run a container in place of a model
}

// ImageSpec is what a deployment asks for of a container image; what is empty stays.
type ImageSpec struct {
	Reference string                     `json:"reference,omitempty"` // REPOSITORY:TAG or REPOSITORY@DIGEST
	Container *atelier.ContainerSettings `json:"container,omitempty"`
}

// TrialSpec is what a version gets that runs beside the one that serves; nil leaves a
// field as it is. See atelier.Split.
type TrialSpec struct {
	Kind      atelier.TrialKind  `json:"kind"`
	Weight    *float64           `json:"weight,omitempty"`
	Sticky    *string            `json:"sticky,omitempty"`
	Sample    *float64           `json:"sample,omitempty"`
	Tolerance *atelier.Tolerance `json:"tolerance,omitempty"`
}

// Deployments lists the workspace's deployments.
func (c *Client) Deployments(ctx context.Context, ws string) iter.Seq2[atelier.Deployment, error] {
	return list[atelier.Deployment](ctx, c, in(ws, "deployments"), nil)
}

// Deployment returns a deployment by name or id.
func (c *Client) Deployment(ctx context.Context, ws, deployment string) (atelier.Deployment, error) {
	var d atelier.Deployment
	return d, c.get(ctx, in(ws, "deployments", deployment), nil, &d)
}

// CreateDeployment makes a deployment.
func (c *Client) CreateDeployment(ctx context.Context, ws string, spec DeploymentSpec) (atelier.Deployment, error) {
	var d atelier.Deployment
	return d, c.post(ctx, in(ws, "deployments"), spec, &d)
}

// UpdateDeployment changes a deployment; empty fields stay as they are.
func (c *Client) UpdateDeployment(ctx context.Context, ws, deployment string, spec DeploymentSpec) (atelier.Deployment, error) {
	var d atelier.Deployment
	return d, c.patch(ctx, in(ws, "deployments", deployment), spec, &d)
}

// PlanDeployment says what a deploy would bring to devices: of the deployment of
// spec's name, or of a new one. Nothing is changed. It waits at most wait, a minute at
// the longest, for differences that are being made; those that are not ready then
// stand in the plan's Pending.
func (c *Client) PlanDeployment(ctx context.Context, ws string, spec DeploymentSpec, wait time.Duration) (atelier.DeploymentPlan, error) {
	var p atelier.DeploymentPlan
	query := url.Values{"wait": {strconv.Itoa(int(min(wait, time.Minute).Seconds()))}}
	return p, c.call(ctx, request{method: http.MethodPost, path: in(ws, "deployments", "plan"), query: query, body: spec}, &p)
}

// DeleteDeployment takes a deployment off its devices.
func (c *Client) DeleteDeployment(ctx context.Context, ws, deployment string) error {
	return c.delete(ctx, in(ws, "deployments", deployment))
}

// DeploymentDevices lists a deployment's state on each device.
func (c *Client) DeploymentDevices(ctx context.Context, ws, deployment string) iter.Seq2[atelier.DeviceStatus, error] {
	return list[atelier.DeviceStatus](ctx, c, in(ws, "deployments", deployment, "devices"), nil)
}

// Endpoint is an endpoint with the addresses on which devices answer it.
type Endpoint struct {
	atelier.Endpoint
	// Model and Version are what the deployment wants to serve, Trial what beside it.
	Model     string         `json:"model,omitempty"`
	Version   int            `json:"version,omitempty"`
	Trial     *atelier.Trial `json:"trial,omitempty"`
	Addresses []Address      `json:"addresses"`
}

// Address is where one device answers an endpoint.
type Address struct {
	Device string              `json:"device"`
	URL    string              `json:"url"`
	State  atelier.ModuleState `json:"state"`
	// Version is the one that serves there, and Trial tells of the one that runs beside it.
	Version int                 `json:"version,omitempty"`
	Trial   *atelier.SlotStatus `json:"trial,omitempty"`
}

// Endpoints lists the workspace's endpoints.
func (c *Client) Endpoints(ctx context.Context, ws string) iter.Seq2[Endpoint, error] {
	return list[Endpoint](ctx, c, in(ws, "endpoints"), nil)
}

// Endpoint returns an endpoint by name or id.
func (c *Client) Endpoint(ctx context.Context, ws, endpoint string) (Endpoint, error) {
	var e Endpoint
	return e, c.get(ctx, in(ws, "endpoints", endpoint), nil, &e)
}

// EndpointKeys are an endpoint's two keys in clear.
type EndpointKeys struct {
	Primary   string `json:"primary"`
	Secondary string `json:"secondary"`
}

// Keys returns an endpoint's keys.
func (c *Client) Keys(ctx context.Context, ws, endpoint string) (EndpointKeys, error) {
	var k EndpointKeys
	return k, c.get(ctx, in(ws, "endpoints", endpoint, "keys"), nil, &k)
}

// RotateKey makes a new key in place of which, "primary" or "secondary".
func (c *Client) RotateKey(ctx context.Context, ws, endpoint, which string) (EndpointKeys, error) {
	var k EndpointKeys
	return k, c.post(ctx, in(ws, "endpoints", endpoint, "keys", which, "rotate"), nil, &k)
}

// Trace says what answered a request.
type Trace struct {
	Request    string         `json:"request"`
	Rollout    string         `json:"rollout"`
	Deployment string         `json:"deployment"`
	Endpoint   string         `json:"endpoint"`
	Package    atelier.Digest `json:"package"`
	Model      string         `json:"model"`
	Version    int            `json:"version"`
	Digest     atelier.Digest `json:"digest"`
	By         string         `json:"by,omitempty"`
	Created    time.Time      `json:"created"`
}

// Trace finds what answered the request with the id.
func (c *Client) Trace(ctx context.Context, ws, requestID string) (Trace, error) {
	var t Trace
	return t, c.get(ctx, in(ws, "requests", requestID), nil, &t)
}
