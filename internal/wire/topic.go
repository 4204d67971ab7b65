// Package wire defines what hub and agents say to each other: MQTT topics, the
// messages on them and their types, and the frames of telemetry. Both sides
// import it and neither imports the other.
//
// It knows no MQTT library and no storage. Everything that it decodes is
// hostile until checked: decoders never panic, and bound what they allocate.
package wire

import (
	"strings"

	atelier "github.com/atelier-edge/atelier"
)

// The topics: at1/d/{device}/{channel} from the hub to a device ("down"), and
// at1/u/{shard}/{device}/{channel} from a device to the hub ("up"). The first
// segment is the protocol's major version. Two patterns with the certificate's
// name are all that a broker must enforce: a device may subscribe to
// at1/d/{device}/+ and publish to at1/u/+/{device}/+.
const (
	topicDown = "at1/d/"
	topicUp   = "at1/u/"
)

// Channel is what a topic is for.
type Channel string

// The channels.
const (
	Control   Channel = "ctl" // signed control messages, both ways
	Content   Channel = "c"   // content frames, both ways, on a connection of its own
	Telemetry Channel = "tel" // telemetry frames, up only; acknowledged on Control
	// Data is for collected records, up only, in the frames of telemetry; acknowledged on
	// Control. A device uses it after a Welcome that names Data.
	Data Channel = "dat"
	// Messages is for what modules say into their workspace, up only, in the frames of
	// telemetry; acknowledged on Control. A device uses it after a Welcome that names Messages.
	Messages Channel = "msg"
)

// ContentClientSuffix is appended to the device's id to form the MQTT client id
// of its second connection, which carries content only.
const ContentClientSuffix = "-c"

// MaxPacket is the largest MQTT payload in bytes that either side sends unless
// a larger one was probed: brokers and cloud gateways commonly cut at 128 KiB.
const MaxPacket = 120 << 10

// DefaultShard is the shard of a hub that runs alone.
const DefaultShard = "0"

// DownTopic returns the topic from the hub to device.
func DownTopic(device string, c Channel) string {
	return topicDown + device + "/" + string(c)
}

// DownPattern returns the pattern of all topics from the hub to device.
func DownPattern(device string) string { return topicDown + device + "/+" }

// UpTopic returns the topic from device to the hub.
func UpTopic(shard, device string, c Channel) string {
	return topicUp + shard + "/" + device + "/" + string(c)
}

// UpPattern returns the pattern of all topics from all devices of a shard.
func UpPattern(shard string) string { return topicUp + shard + "/+/+" }

// ParseUp splits the topic of a message that came from a device. ok is false
// for a topic that is none of ours.
func ParseUp(topic string) (shard, device string, c Channel, ok bool) {
	rest, ok := strings.CutPrefix(topic, topicUp)
	if !ok {
		return "", "", "", false
	}
	parts := strings.Split(rest, "/")
	if len(parts) != 3 || parts[0] == "" || !atelier.IsID(parts[1]) || !known(parts[2]) {
		return "", "", "", false
	}
	return parts[0], parts[1], Channel(parts[2]), true
}

// ParseDown splits the topic of a message that came from the hub.
func ParseDown(topic string) (device string, c Channel, ok bool) {
	rest, ok := strings.CutPrefix(topic, topicDown)
	if !ok {
		return "", "", false
	}
	device, ch, ok := strings.Cut(rest, "/")
	if !ok || !atelier.IsID(device) || !known(ch) {
		return "", "", false
	}
	return device, Channel(ch), true
}

func known(ch string) bool {
	switch Channel(ch) {
	case Control, Content, Telemetry, Data, Messages:
		return true
	}
	return false
}

// MayPublish reports whether device may publish to topic.
func MayPublish(device, topic string) bool {
	_, d, _, ok := ParseUp(topic)
	return ok && d == device
}

// MaySubscribe reports whether device may subscribe to filter: its own down
// topics, one by one or all of them.
func MaySubscribe(device, filter string) bool {
	if filter == DownPattern(device) {
		return true
	}
	d, _, ok := ParseDown(filter)
	return ok && d == device
}
