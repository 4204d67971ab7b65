package transfer

import "crypto/sha256"

// Cost returns how many bytes of frames come to a peer that fetches content of size
// bytes as it is, in frames of at most maxFrame bytes: its plan and its data, where
// nothing is lost and nothing was there. Arrival.Received counts the same.
func Cost(size int64, maxFrame int) int64 {
	return cost(size, maxFrame, maxFrame, 0)
}

// DifferenceCost is Cost for a difference of size bytes that needs so many bases.
func DifferenceCost(size int64, maxFrame, bases int) int64 {
	return cost(size, maxFrame, maxFrame-planTail, int64(sha256.Size+1+bases*sha256.Size))
}

// cost sums up a plan, with so many bytes more than the chunks, and data. planned is
// the frame that the chunks were chosen for.
func cost(size int64, maxFrame, planned int, more int64) int64 {
	if size == 0 {
		return 0 // nobody asks for it
	}
	length, most := chunkLength(size, planned), int64(maxFrame-dataHeader)
	whole, rest := size/length, size%length
	chunks, frames := whole, whole*((length+most-1)/most)
	if rest > 0 {
		chunks, frames = chunks+1, frames+(rest+most-1)/most
	}
	return planHeader + chunks*planEntry + more + frames*dataHeader + size
}

// Takes reports whether a peer takes a difference of which rest bytes are to come, in
// place of content of size bytes of which missing are. room is what of its disk both
// may take: it needs a place for the difference and the content at once.
func Takes(rest, size, missing, room int64) bool {
	return rest < missing && room >= rest+size
}
