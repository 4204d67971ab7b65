package access

import "strings"

// The verbs. A verb that only reads ends in .list, .show, .watch, .query or
// .download; every other one changes something or hands out a secret.
const (
	WorkspaceCreate    Verb = "workspace.create"     // make a workspace
	WorkspaceList      Verb = "workspace.list"       // see which workspaces there are
	WorkspaceShow      Verb = "workspace.show"       // read a workspace
	WorkspaceUpdate    Verb = "workspace.update"     // change a workspace's name, description, tags or budget
	WorkspaceDelete    Verb = "workspace.delete"     // delete an empty workspace
	WorkspaceRotateKey Verb = "workspace.rotate-key" // give a workspace a new key for desired states

	BlobUpload   Verb = "blob.upload"   // send content to a workspace, or to the hub
	BlobShow     Verb = "blob.show"     // ask whether content is there, and how large it is
	BlobDownload Verb = "blob.download" // read content by its digest

	ModelRegister Verb = "model.register" // make a model, or a version of one
	ModelList     Verb = "model.list"     // see models and their versions
	ModelShow     Verb = "model.show"     // read a model or a version
	ModelUpdate   Verb = "model.update"   // change the description or tags of a model or a version
	ModelArchive  Verb = "model.archive"  // put a version out of use, or back into it
	ModelDelete   Verb = "model.delete"   // delete a model or a version
	ModelDownload Verb = "model.download" // read a version's files

	EnvironmentCreate Verb = "environment.create" // define a version of an environment
	EnvironmentList   Verb = "environment.list"   // see environments, and which builds wait for a builder
	EnvironmentShow   Verb = "environment.show"   // read an environment and the logs of its builds
	EnvironmentDelete Verb = "environment.delete" // delete a version of an environment
	EnvironmentBuild  Verb = "environment.build"  // claim a build, and say what came of it
	EnvironmentHold   Verb = "environment.hold"   // keep a build that was claimed

	ImageList     Verb = "image.list"     // see the images and tags of the container registry
	ImageShow     Verb = "image.show"     // read an image's manifest, and what refers to it
	ImageDownload Verb = "image.download" // read an image's layers
	ImageUpload   Verb = "image.upload"   // send layers for an image, which show only once it is pushed
	ImagePush     Verb = "image.push"     // push an image's manifest, and tag it
	ImageDelete   Verb = "image.delete"   // delete an image, a tag or a layer
	ImageSign     Verb = "image.sign"     // sign an image, and say what it contains

	SigningKeyList   Verb = "signing-key.list"   // see the public keys of a workspace's images
	SigningKeyRotate Verb = "signing-key.rotate" // give a workspace a new key for images, or revoke older ones

	PackageBuild    Verb = "package.build"    // make a version of a model into images
	PackageList     Verb = "package.list"     // see packages
	PackageShow     Verb = "package.show"     // read a package
	PackageDownload Verb = "package.download" // read the content of a package
	PackageDelete   Verb = "package.delete"   // delete a package with its images

	BaseAdd    Verb = "base.add"    // add a base that packages may stand on
	BaseList   Verb = "base.list"   // see bases
	BaseShow   Verb = "base.show"   // read a base
	BaseDelete Verb = "base.delete" // delete a base

	RuntimeRegister Verb = "runtime.register" // add a runtime to the hub
	RuntimeList     Verb = "runtime.list"     // see the hub's runtimes
	RuntimeShow     Verb = "runtime.show"     // read a runtime
	RuntimeDelete   Verb = "runtime.delete"   // remove a runtime

	TokenCreate Verb = "token.create" // make an access token; shows its secret
	TokenList   Verb = "token.list"   // see access tokens, without secrets
	TokenRevoke Verb = "token.revoke" // end an access token

	JoinTokenCreate Verb = "join-token.create" // make a token that lets devices join; shows its secret
	JoinTokenList   Verb = "join-token.list"   // see join tokens, without secrets
	JoinTokenRevoke Verb = "join-token.revoke" // end a join token

	DeviceEnrol   Verb = "device.enrol"   // join a workspace as a device
	DeviceList    Verb = "device.list"    // see devices
	DeviceShow    Verb = "device.show"    // read a device, its desired and reported state, and why they differ
	DeviceUpdate  Verb = "device.update"  // change a device's labels or budget
	DeviceRevoke  Verb = "device.revoke"  // cut a device off
	DeviceDelete  Verb = "device.delete"  // revoke and forget a device
	DeviceRenew   Verb = "device.renew"   // receive a new certificate as a device
	DeviceConnect Verb = "device.connect" // connect to the broker as a device
	DeviceLogs    Verb = "device.logs"    // fetch a log from a device

	StateReport Verb = "state.report" // report a device's state
	ContentPull Verb = "content.pull" // pull content to a device
	ContentPush Verb = "content.push" // push content from a device

	DeploymentCreate Verb = "deployment.create" // deploy a model version
	DeploymentList   Verb = "deployment.list"   // see deployments
	DeploymentShow   Verb = "deployment.show"   // read a deployment and its state on devices
	DeploymentPlan   Verb = "deployment.plan"   // let the hub work out what a deploy would bring to devices, and make the differences that it would use
	DeploymentUpdate Verb = "deployment.update" // change a deployment, its version above all
	DeploymentDelete Verb = "deployment.delete" // end a deployment

	BundleExport Verb = "bundle.export" // take signed desired states with their content away, for devices without a network

	EndpointList      Verb = "endpoint.list"       // see endpoints
	EndpointShow      Verb = "endpoint.show"       // read an endpoint, its addresses, and what answered a request
	EndpointKeys      Verb = "endpoint.keys"       // see an endpoint's keys
	EndpointRotateKey Verb = "endpoint.rotate-key" // give an endpoint a new primary or secondary key

	DataWrite  Verb = "data.write"  // deliver a device's recorded requests
	DataList   Verb = "data.list"   // see which data files there are
	DataExport Verb = "data.export" // take data files away: the inputs and outputs of requests
	DataFlush  Verb = "data.flush"  // make data files of the records that came until now
	DataDelete Verb = "data.delete" // delete data files

	MessageWrite Verb = "message.write" // deliver what modules of a device say
	MessageList  Verb = "message.list"  // read what modules of a device said
	TwinShow     Verb = "twin.show"     // read the desired and reported properties of a module
	TwinUpdate   Verb = "twin.update"   // change the desired properties of a module

	TelemetryWrite Verb = "telemetry.write" // deliver a device's telemetry
	TelemetryQuery Verb = "telemetry.query" // query telemetry

	EventWatch Verb = "event.watch" // read events, those past and those to come
	AuditShow  Verb = "audit.show"  // read the audit trail
	HubShow    Verb = "hub.show"    // see the hub's version, addresses and the caller's own name

	HubRotateRoot Verb = "hub.rotate-root" // give the hub a new root key
)

// Reads reports whether v only reads.
func (v Verb) Reads() bool {
	_, action, _ := strings.Cut(string(v), ".")
	switch action {
	case "list", "show", "watch", "query", "download":
		return true
	}
	return false
}

// ofDevice are the verbs that a device does to itself, with the device as the
// object. All of another kind of caller's business is closed to it.
var ofDevice = map[Verb]bool{
	DeviceConnect: true, DeviceRenew: true, StateReport: true,
	ContentPull: true, ContentPush: true, TelemetryWrite: true, DataWrite: true, MessageWrite: true,
}

// ofBuilder are the verbs that it takes to find what is to be built, and to deliver it.
// What builds runs what others wrote: it can read no model and change nothing else.
var ofBuilder = map[Verb]bool{
	HubShow: true, WorkspaceList: true, EnvironmentList: true, EnvironmentShow: true, EnvironmentBuild: true, EnvironmentHold: true,
	BlobUpload: true, BlobShow: true,
}

// frequent are the verbs that a device does many times a minute, a builder as long as
// it builds, and whoever pushes an image for each piece of each layer.
var frequent = map[Verb]bool{
	StateReport: true, ContentPull: true, ContentPush: true, TelemetryWrite: true, DataWrite: true, MessageWrite: true, EnvironmentHold: true, ImageUpload: true,
}

// shared are the verbs on the hub itself that a caller bound to one workspace
// may do: whoever serves them shows nothing of other workspaces.
var shared = map[Verb]bool{
	HubShow: true, WorkspaceList: true, RuntimeList: true, RuntimeShow: true,
}
