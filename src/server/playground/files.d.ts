/** The page's files, which are imported as text. */
declare module "../playground/*" {
  const text: string;
  export default text;
}
