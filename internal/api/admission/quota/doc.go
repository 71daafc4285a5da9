// Package quota holds requests to the ResourceQuotas of their namespace.
//
// What a request uses and whether that still fits is upstream's arithmetic. The use is added
// to the quota's status by a compare-and-swap before the object is stored, so requests that
// arrive together cannot overrun a quota. Start at New.
package quota
