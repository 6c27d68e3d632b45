/* The data of the fixture, from files in the include path; a head has 512 x 32 floats. */
  .section .rodata
  .balign 4
  .global fixture_q, fixture_k, fixture_v, fixture_expected
fixture_q: .incbin "q.f32", 0, 512 * 32 * 4
fixture_k: .incbin "k.f32", 0, 512 * 32 * 4
fixture_v: .incbin "v.f32", 0, 512 * 32 * 4
fixture_expected: .incbin "expected.f32"
