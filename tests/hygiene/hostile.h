/* What other people's headers define: Windows, DOS compilers, Arduino, complex.h, old utility headers. */
#define min(a, b) hostile min
#define max(a, b) hostile max
#define sq(x) hostile sq
#define bit(b) hostile bit
#define swap(a, b) hostile swap
#define near hostile near
#define far hostile far
#define small hostile small
#define huge hostile huge
#define interface hostile interface
#define pascal hostile pascal
#define I hostile I
#define N hostile N
#define M hostile M
#define D hostile D
#define B hostile B
#define E hostile E
#define F(x) hostile F
#define K hostile K
#define L hostile L
#define Q hostile Q
#define R hostile R
#define T hostile T
#define V hostile V
#define X hostile X
#define PI hostile PI
#define IN hostile IN
#define OUT hostile OUT
#define VOID hostile VOID
#define CONST hostile CONST
#define ERROR hostile ERROR
#define OPTIONAL hostile OPTIONAL
#define DEFAULT hostile DEFAULT
#define TRUE hostile TRUE
#define FALSE hostile FALSE
#define HIGH hostile HIGH
#define LOW hostile LOW
#define STRICT hostile STRICT
#define DIFFERENCE hostile DIFFERENCE
