package atelier

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Room is what content needs of a device's disk and what there is. An agent that
// fetches and a hub that plans say in the same words why something does not fit.
type Room struct {
	Need    int64 // bytes that are to come
	Free    int64 // bytes on the disk
	Reserve int64 // of Free, what stays free

	freeable int64
	numbers  map[string][]int // by model: versions that only the way back needs
}

// Short returns how many bytes are missing, 0 where all of it fits.
func (r *Room) Short() int64 { return max(0, r.Need+r.Reserve-r.Free) }

// GiveUp notes that to remove a version, which is kept for the way back, would free
// so many bytes.
func (r *Room) GiveUp(model string, version int, bytes int64) {
	if r.numbers == nil {
		r.numbers = map[string][]int{}
	}
	r.freeable += bytes
	r.numbers[model] = append(r.numbers[model], version)
}

// Err is nil where there is room; else NoSpace that says what is needed, what there
// is, and what would help.
func (r *Room) Err() error {
	short := r.Short()
	if short == 0 {
		return nil
	}
	size := FormatBytes
	kept := size(r.Reserve)
	if r.Reserve > r.Free {
		kept = "all"
	}
	text := fmt.Sprintf("needs %s, %s free (%s of it kept in reserve)", size(r.Need), size(r.Free), kept)
	remedy := fmt.Sprintf("Free at least %s on the device, or remove a deployment from it.", size(short))
	if r.freeable > 0 {
		text += fmt.Sprintf(", %s can be freed by removing %s, kept for the way back", size(r.freeable), r.versions())
	}
	if r.freeable >= short {
		remedy = fmt.Sprintf("Set disk.keep_previous = false in the agent's configuration to give up the way back, or free at least %s on the device.", size(short))
	}
	return Errorf(NoSpace, "%s", text).WithRemedy("%s", remedy)
}

// versions writes "version 1 of digits and versions 3 and 4 of speech".
func (r *Room) versions() string {
	models := make([]string, 0, len(r.numbers))
	for model := range r.numbers {
		models = append(models, model)
	}
	slices.Sort(models)
	parts := make([]string, 0, len(models))
	for _, model := range models {
		parts = append(parts, versionsOf(model, r.numbers[model]))
	}
	return strings.Join(parts, " and ")
}

// versionsOf writes "versions 3 and 4 of digits".
func versionsOf(model string, numbers []int) string {
	slices.Sort(numbers)
	words := make([]string, 0, len(numbers))
	for _, n := range slices.Compact(numbers) {
		words = append(words, strconv.Itoa(n))
	}
	last := len(words) - 1
	if last == 0 {
		return fmt.Sprintf("version %s of %s", words[0], model)
	}
	return fmt.Sprintf("versions %s and %s of %s", strings.Join(words[:last], ", "), words[last], model)
}
