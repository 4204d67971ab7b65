package atelier

import (
	"encoding/json"
	"errors"
	"log/slog"
)

// Reason is the stable, machine-readable word for why something is as it is.
// Dashboards and scripts branch on it; the list is documented and only grows.
type Reason string

// The reasons. Each has an entry in reasonDocs; a test sees to that.
const (
	ReasonNoSpace             Reason = "NoSpace"
	ReasonDigestMismatch      Reason = "DigestMismatch"
	ReasonSignatureInvalid    Reason = "SignatureInvalid"
	ReasonKeyUnknown          Reason = "KeyUnknown"
	ReasonUnreachable         Reason = "Unreachable"
	ReasonNeverConnected      Reason = "NeverConnected"
	ReasonVariantMissing      Reason = "VariantMissing"
	ReasonRuntimeMissing      Reason = "RuntimeMissing"
	ReasonMemoryShort         Reason = "MemoryShort"
	ReasonPortInUse           Reason = "PortInUse"
	ReasonStartFailed         Reason = "StartFailed"
	ReasonInitFailed          Reason = "InitFailed"
	ReasonScriptFailed        Reason = "ScriptFailed"
	ReasonGoldenFailed        Reason = "GoldenFailed"
	ReasonProbeFailed         Reason = "ProbeFailed"
	ReasonCrashed             Reason = "Crashed"
	ReasonCrashLoop           Reason = "CrashLoop"
	ReasonOutOfMemory         Reason = "OutOfMemory"
	ReasonDriverDown          Reason = "DriverDown"
	ReasonStateNotDurable     Reason = "StateNotDurable"
	ReasonCertificateExpired  Reason = "CertificateExpired"
	ReasonClockUntrusted      Reason = "ClockUntrusted"
	ReasonUnsupportedFeature  Reason = "UnsupportedFeature"
	ReasonSuperseded          Reason = "Superseded"
	ReasonRevoked             Reason = "Revoked"
	ReasonReplayed            Reason = "Replayed"
	ReasonContentGone         Reason = "ContentGone"
	ReasonHubNotTrusted       Reason = "HubNotTrusted"
	ReasonNotAdmitted         Reason = "NotAdmitted"
	ReasonHubSilent           Reason = "HubSilent"
	ReasonAgentDown           Reason = "AgentDown"
	ReasonTelemetryLost       Reason = "TelemetryLost"
	ReasonGatewayDown         Reason = "GatewayDown"
	ReasonRouterDown          Reason = "RouterDown"
	ReasonMessagesLost        Reason = "MessagesLost"
	ReasonConfigInvalid       Reason = "ConfigInvalid"
	ReasonStateTooLarge       Reason = "StateTooLarge"
	ReasonMisbehaves          Reason = "Misbehaves"
	ReasonWindowClosed        Reason = "WindowClosed"
	ReasonBundleIncomplete    Reason = "BundleIncomplete"
	ReasonBundleInvalid       Reason = "BundleInvalid"
	ReasonBundleUnreadable    Reason = "BundleUnreadable"
	ReasonNotForDevice        Reason = "NotForDevice"
	ReasonContentMissing      Reason = "ContentMissing"
	ReasonBuildFailed         Reason = "BuildFailed"
	ReasonBuilderLost         Reason = "BuilderLost"
	ReasonPackageFailed       Reason = "PackageFailed"
	ReasonProviderFallback    Reason = "ProviderFallback"
	ReasonImageUnsigned       Reason = "ImageUnsigned"
	ReasonImageSignatureWrong Reason = "ImageSignatureWrong"
	ReasonImageInvalid        Reason = "ImageInvalid"
	ReasonDeviceMismatch      Reason = "DeviceMismatch"
	ReasonProgrammingFailed   Reason = "ProgrammingFailed"
	ReasonQuarantined         Reason = "Quarantined"
	ReasonCPUFallback         Reason = "CPUFallback"
	ReasonWaiting             Reason = "Waiting"
	ReasonInProgress          Reason = "InProgress"
	ReasonAsDesired           Reason = "AsDesired"
)

// ReasonDoc explains a reason to people.
type ReasonDoc struct {
	Meaning string // one sentence
	Remedy  string // what to do; "" where nothing needs doing
}

var reasonDocs = map[Reason]ReasonDoc{
	ReasonNoSpace:             {"The device's disk cannot hold what the deployment needs.", "Free disk space on the device, or remove a deployment from it."},
	ReasonDigestMismatch:      {"Received content is not what its digest says, also after fetching it anew.", "Check the device's disk and the hub's storage; register the model again if the hub's copy is damaged."},
	ReasonSignatureInvalid:    {"A message or a piece of content carries a signature that does not verify.", "Make sure that the device is joined to this hub; join it again if the hub was set up anew. If it is, somebody else publishes to it: look who may (docs/brokers.md)."},
	ReasonKeyUnknown:          {"A message was signed with a key that the device's pinned root does not delegate.", "Restore the hub's keys from its backup, or join the device again. If the hub has its keys, somebody else publishes to the device: look who may (docs/brokers.md)."},
	ReasonUnreachable:         {"The hub has not heard from the device.", "Check the device's power and network, and the log of atelier-agent on it."},
	ReasonNeverConnected:      {"The device joined but has not connected over MQTT yet.", "Start atelier-agent on the device, and let it reach the hub's MQTT port."},
	ReasonVariantMissing:      {"The model version has no variant that this device can run.", "Register a variant that fits the device's facts, or choose other devices."},
	ReasonRuntimeMissing:      {"The runtime that the variant needs is not registered in the hub for this device's platform, or cannot run there.", "Register it with 'atelier runtime register', or choose a device that can run it."},
	ReasonMemoryShort:         {"The device has too little memory for the module.", "Stop another module on it, or choose a smaller variant."},
	ReasonPortInUse:           {"The address that the gateway should listen on is taken by another program.", "Change gateway.listen in the agent's configuration, or stop the other program."},
	ReasonStartFailed:         {"The module's process could not be started.", "Read the message and the module's log with 'atelier device logs'."},
	ReasonInitFailed:          {"The module started but could not load its model.", "Read the message and the module's log with 'atelier device logs'."},
	ReasonScriptFailed:        {"The module's scoring script failed before it could take requests: it could not be imported, or init() raised, ended or hung.", "Read the message, which has the script's output; correct the script or its environment and register the model again."},
	ReasonGoldenFailed:        {"On this device the model does not give what its golden inputs say, or takes longer than they allow; it takes no traffic.", "Compare the message with the version's golden.json; register a model that is right, or golden inputs with a tolerance that fits."},
	ReasonProbeFailed:         {"The module runs but does not answer its health probe.", "Read the module's log with 'atelier device logs'."},
	ReasonCrashed:             {"The module ended by itself; the agent starts it again.", "Read the module's log with 'atelier device logs' if it repeats."},
	ReasonCrashLoop:           {"The module keeps ending; the agent waits longer before each new start.", "Read the module's log with 'atelier device logs', and deploy a version that works."},
	ReasonOutOfMemory:         {"The module was ended because it used more memory than it may.", "Raise the deployment's memory limit, or choose a smaller variant."},
	ReasonDriverDown:          {"The program that drives the module's target does not answer.", "Read the log of atelier-agent on the device."},
	ReasonStateNotDurable:     {"The agent could not save the desired state to its disk, and keeps running the old one.", "Free disk space or replace the disk of the device."},
	ReasonCertificateExpired:  {"The device's certificate ran out and could not be renewed.", "Let the device reach the hub's HTTPS port; check its clock."},
	ReasonClockUntrusted:      {"The device's clock is not the hub's, and cannot be right.", "Set the device's clock, by NTP for example (or the hub's, where that one is wrong); until then the device goes by the hub's."},
	ReasonUnsupportedFeature:  {"The desired state needs a feature that this agent does not have.", "Update atelier-agent on the device."},
	ReasonSuperseded:          {"A newer desired state replaced this one.", ""},
	ReasonRevoked:             {"The device was revoked, and the hub no longer talks to it.", "Join the device again with a new token if it should come back."},
	ReasonReplayed:            {"A desired state that is older than the present one was refused.", "Nothing is to be done, unless it repeats: then look for somebody who replays messages."},
	ReasonContentGone:         {"The hub no longer has content that the desired state names.", "Register the model version again."},
	ReasonHubNotTrusted:       {"What answers at the hub's address does not prove to be the hub that the device joined.", "Join the device again if the hub was set up anew; if not, find out what answers there."},
	ReasonNotAdmitted:         {"The hub refuses the device's certificate.", "Nothing is to be done if it passes, since the device renews its certificate; otherwise see 'atelier device list' whether the hub still knows the device, and join it again."},
	ReasonHubSilent:           {"The device is connected to the broker, and the hub does not answer.", "Check that atelier-hub runs and reaches its broker; its log says why it does not."},
	ReasonAgentDown:           {"No agent runs on the device; its modules go on without one.", "Start it with 'systemctl start atelier-agent', or 'atelier-agent run'."},
	ReasonTelemetryLost:       {"Measurements of the device are given up before the hub has them: its spool or its disk is full.", "Let the device reach the hub, free disk space on it, or raise telemetry.spool_bytes in the agent's configuration."},
	ReasonGatewayDown:         {"The gateway does not answer the agent.", "Read the log of atelier-gateway on the device."},
	ReasonRouterDown:          {"The router, which carries messages between modules and into the workspace, does not answer the agent.", "Read the log of atelier-router on the device, router/router.log below its state directory."},
	ReasonMessagesLost:        {"Messages of modules are given up before they are taken: the queue on their way or the disk is full.", "Let the module that takes them run, or the device reach the hub; free disk space on it, or raise modules.queue_bytes in the agent's configuration."},
	ReasonStateTooLarge:       {"The device's desired state would not fit one message with this deployment in it.", "Select fewer deployments for the device, or register the model with fewer files."},
	ReasonConfigInvalid:       {"The agent's configuration file has an error; the agent keeps the settings that it had.", "Correct the file; the agent reads it again by itself."},
	ReasonMisbehaves:          {"The device sends much that a sound agent would not: foreign topics, malformed or forged messages, or far too many.", "Look at what runs on the device; 'atelier device revoke' cuts it off."},
	ReasonWindowClosed:        {"Content may not be transferred to the device at this time of the day.", "Nothing is to be done: the transfer goes on by itself when the window opens. 'atelier device set' and 'atelier workspace set' change it (--transfer-window)."},
	ReasonBundleIncomplete:    {"A part of the bundle is not on the device yet.", "Wait until it is copied; the agent looks again by itself. If nothing copies it any more, copy it again."},
	ReasonBundleInvalid:       {"What was put into the bundle directory is not a bundle that this agent can read.", "Put there what 'atelier bundle export' wrote, a directory or a file whose name ends in .tar, as it is."},
	ReasonBundleUnreadable:    {"The bundle could not be read, or what it holds could not be stored.", "Read the message; check the medium and the device's disk. The agent tries again by itself."},
	ReasonNotForDevice:        {"The bundle is for other devices or for another workspace.", "Export one for this device: 'atelier bundle export --device NAME'."},
	ReasonContentMissing:      {"The bundle leaves out content that the device does not hold.", "Export it again without --from and --since-device."},
	ReasonBuildFailed:         {"The environment cannot be built as it is defined.", "Read the build's log with 'atelier environment log', correct the definition, and create the environment again."},
	ReasonBuilderLost:         {"Each builder that worked on the environment went away before it was done.", "See why atelier-builder ends on its machine (memory and disk, above all), then create the environment again."},
	ReasonPackageFailed:       {"The images of the package could not be made.", "Mend what the message says, and build the package again with the same command."},
	ReasonProviderFallback:    {"The module serves, but runs on another execution provider than the deployment prefers.", "Register a runtime that brings the provider, and see that the device has the hardware with its driver; or deploy with --providers that it has."},
	ReasonImageUnsigned:       {"The module's image carries no signature, so that the device does not start it.", "Sign it with 'atelier image sign REPOSITORY:TAG', and deploy again."},
	ReasonImageSignatureWrong: {"The signature of the module's image is not of this image, or not by a key that the device trusts for images; it is not started.", "See with 'atelier image show' by which key it is signed; sign it with 'atelier image sign', and deploy again. If it was signed by the hub, find out who changed it."},
	ReasonImageInvalid:        {"The FPGA's image is damaged, or is not what its signed manifest says; nothing was loaded.", "Make the overlay package anew and register it again."},
	ReasonDeviceMismatch:      {"The overlay is for another part or shell than the device has, or the model for another overlay; nothing was loaded.", "Register an overlay that was made for this device, and compile the model for it."},
	ReasonProgrammingFailed:   {"The FPGA did not take an image, or did not answer as it should afterwards; it runs what ran before, or its golden image.", "Read the message; if it repeats with an image that other devices take, look at the device and its link."},
	ReasonQuarantined:         {"The FPGA took neither its last good image nor its golden one, and is not used any more.", "Look at the device, its power and its link; restarting the module tries the golden image once more."},
	ReasonCPUFallback:         {"The module serves, but on the CPU: the FPGA is out of use.", "See why in the message; the answers are the CPU's until the FPGA can be programmed again."},
	ReasonWaiting:             {"It waits for another step to finish first.", ""},
	ReasonInProgress:          {"It is being worked on.", ""},
	ReasonAsDesired:           {"Everything is as desired.", ""},
}

// Doc returns what r means and what to do about it, and whether r is known.
func (r Reason) Doc() (ReasonDoc, bool) {
	d, ok := reasonDocs[r]
	return d, ok
}

// Why says why something is as it is: a reason, a sentence with the particulars,
// and a remedy. Its fields cannot be set from outside, so that a Why always
// carries a reason: make one with Because.
type Why struct {
	reason  Reason
	message string
	remedy  string
}

// Because makes a Why. The remedy is the documented one of the reason.
func Because(r Reason, message string) Why {
	return Why{reason: r, message: message, remedy: reasonDocs[r].Remedy}
}

// BecauseOf makes a Why of an error: its message, and its remedy where it is an
// *Error that has one.
func BecauseOf(r Reason, err error) Why {
	why := Because(r, err.Error())
	var e *Error
	if errors.As(err, &e) && e.Remedy != "" {
		why.remedy = e.Remedy
	}
	return why
}

// WithRemedy returns w with a remedy of its own.
func (w Why) WithRemedy(remedy string) Why {
	w.remedy = remedy
	return w
}

// Reason returns the reason; ReasonInProgress for the zero value.
func (w Why) Reason() Reason {
	if w.reason == "" {
		return ReasonInProgress
	}
	return w.reason
}

// Message returns the particulars, or the reason's meaning where none were given.
func (w Why) Message() string {
	if w.message == "" {
		return reasonDocs[w.Reason()].Meaning
	}
	return w.message
}

// Remedy returns what to do, or "" where nothing needs doing.
func (w Why) Remedy() string { return w.remedy }

// LogValue writes reason, message and remedy into a log.
func (w Why) LogValue() slog.Value {
	attrs := []slog.Attr{slog.String("reason", string(w.Reason())), slog.String("message", w.Message())}
	if w.remedy != "" {
		attrs = append(attrs, slog.String("remedy", w.remedy))
	}
	return slog.GroupValue(attrs...)
}

type whyJSON struct {
	Reason  Reason `json:"reason"`
	Message string `json:"message,omitempty"`
	Remedy  string `json:"remedy,omitempty"`
}

// MarshalJSON writes {"reason", "message", "remedy"}.
func (w Why) MarshalJSON() ([]byte, error) {
	return json.Marshal(whyJSON{w.Reason(), w.Message(), w.remedy})
}

// UnmarshalJSON reads what MarshalJSON writes. A reason that this program does
// not know is kept as it came: a newer peer may have sent it.
func (w *Why) UnmarshalJSON(b []byte) error {
	var j whyJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	*w = Why{reason: j.Reason, message: j.Message, remedy: j.Remedy}
	return nil
}
