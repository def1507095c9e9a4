// Package bench measures the pipeline side by side with what it is compared to, in one run, so that the ratios hold
// on a noisy machine. "make bench" runs it; its dependencies stay out of the product.
package bench
