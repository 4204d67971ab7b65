// Package crash cuts the power under the built programs, or kills them, at seeded
// points of the main job, and checks what is there after a start. It holds tests
// only; 'make crash' runs all points, 'make crash SIDE=hub HOW=cut SEED=7' one again.
package crash
